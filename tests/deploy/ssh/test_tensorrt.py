"""A board with TensorRT behind a real sshd: probe, profile, deploy, predict, once a release of TensorRT.

The engine is the fake one, put where the board's Python finds its packages: nothing in the program knows of it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto

import deploy.agent
from afpkd.record import sha256_of
from bench.loopback import Board, python_with
from deploy.agent import fake_tensorrt
from deploy.deployment import deploy_bundle
from deploy.devices import open_target, probe
from deploy.measure_file import measure_file
from deploy.pack import agent_archive
from tests.deploy.conftest import linear_onnx, linear_weight, reference_logits
from tests.deploy.ssh.conftest import profiled

if TYPE_CHECKING:
    from tests.deploy.conftest import HandMadeBundle

LIBRARY = """
import sys

import agent

agent.__path__.append({folder!r})  # the fakes are not in the archive

from agent import cuda, fake_cuda, fake_tensorrt

cuda.LIBRARIES.clear()
cuda.LIBRARIES["fake"] = fake_cuda.FakeCuda
sys.modules[__name__] = fake_tensorrt.api({level!r}, **{knobs!r})
"""

BoardWith = Callable[..., str]
"""(level, **knobs) -> the interpreter whose packages hold that TensorRT."""


@pytest.fixture
def board_with(board: Board, tmp_path: Path) -> BoardWith:
    def make(level: str, **knobs: Any) -> str:
        library = LIBRARY.format(folder=str(Path(deploy.agent.__file__).parent), level=level, knobs=knobs)
        python = python_with(tmp_path / "system", "tensorrt.py", library)
        board.describe(python=python)
        return python

    return make


def test_by_hand_on_the_board_its_own_tensorrt_is_taken(
    board_with: BoardWith, bundle: HandMadeBundle, tmp_path: Path
) -> None:
    python = board_with("11.4")
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    command = [python, "-I", "agent.pyz", "profile", str(bundle.folder)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}  # where engines go without a work folder
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    assert (record["runtime"]["name"], record["runtime"]["version"]) == ("tensorrt", fake_tensorrt.VERSIONS["11.4"])
    assert record["top1"] == 100 * (80 - bundle.wrong) / 80
    assert len(list((tmp_path / "cache").rglob("*.engine"))) == 1


def two_files(bundle: HandMadeBundle) -> None:
    """The same network for old and for new releases: which is taken, TensorRT's version there decides."""
    manifest = bundle.manifest()
    (entry,) = manifest["files"]
    (bundle.folder / "legacy.onnx").write_bytes((bundle.folder / "fp32.onnx").read_bytes())
    bounds = {"fp32.onnx": ("10.0", None), "legacy.onnx": ("8.5", "8.6")}
    manifest["files"] = [
        {**entry, "path": name, "runtime": "tensorrt", "min_version": low, "max_version": high}
        for name, (low, high) in bounds.items()
    ]
    manifest["hashes"]["legacy.onnx"] = entry["sha256"]
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize(
    ("level", "file", "typing"),
    [("8.5", "legacy.onnx", "weak"), ("10.3", "fp32.onnx", "strong"), ("11.4", "fp32.onnx", "strong")],
)
def test_a_board_with_each_release_is_profiled_and_used(
    board: Board, board_with: BoardWith, bundle: HandMadeBundle, tmp_path: Path, level: str, file: str, typing: str
) -> None:
    python = board_with(level)
    two_files(bundle)
    with open_target(board.device()) as target:
        assert probe(target)["runtimes"] == ["tensorrt", "onnxruntime"]
    record = profiled(bundle.folder, tmp_path / "row.json")
    assert (record["golden"]["after"]["ok"], record["n"]) == (True, 200)
    runtime = record["runtime"]
    assert (runtime["name"], runtime["version"]) == ("tensorrt", fake_tensorrt.VERSIONS[level])
    assert (runtime["engine"]["typing"], runtime["engine"]["built_because"]) == (typing, "never built here")
    assert record["inputs"][file] == sha256_of(bundle.folder / file)
    assert record["top1"] == 100 * (80 - bundle.wrong) / 80
    (row,) = deploy_bundle(bundle.folder, ["board"], precision="fp32", keep=3, progress=lambda *event: None)
    facts = row["release"]["runtime_facts"]
    assert (facts["version"], row["release"]["file"]) == (fake_tensorrt.VERSIONS[level], file)
    assert facts["engine"]["built_because"] is None  # the engine of the profile is the engine of the release
    images = np.load(bundle.folder / "eval.npy")[:4]
    np.save(tmp_path / "four.npy", images)
    command = [python, "-I", str(board.work / "current" / "agent.pyz"), "predict", str(tmp_path / "four.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    classes = [json.loads(line)["top"][0]["class"] for line in done.stdout.splitlines()]
    assert classes == list(reference_logits(images, linear_weight()).argmax(axis=1))


@pytest.mark.usefixtures("instant")
def test_a_build_the_kernel_kills_is_tried_again_and_the_record_says_so(
    board: Board, board_with: BoardWith, bundle: HandMadeBundle, tmp_path: Path
) -> None:
    python, prefix = board_with("10.3", memory_bytes=1 << 30, kills=True), tmp_path / "prefix"
    prefix.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/started\nexec {python} "$@"\n')
    prefix.chmod(0o755)
    board.describe(python=str(prefix))
    record = profiled(bundle.folder, tmp_path / "row.json")
    assert record["golden"]["after"]["ok"]
    told = record["runtime"]["engine"]["out_of_memory"]
    assert (told["asked_workspace_bytes"], told["workspace_bytes"]) == (None, 256 << 20)
    work = (tmp_path / "started").read_text().partition("agent.pyz profile\n")[2]
    assert work.count("-I -c \n") == 4  # two builds, a look at the engine, the sensors' reader: all through it


@pytest.mark.usefixtures("instant")
def test_any_file_is_built_for_the_images_of_its_call_and_in_its_own_precision(
    board: Board, board_with: BoardWith, tmp_path: Path
) -> None:
    board_with("8.6")  # types are not binding there: what is not allowed is computed in fp32
    model = tmp_path / "half.onnx"
    model.write_bytes(linear_onnx(linear_weight(), TensorProto.FLOAT16))
    record = measure_file(model, device="board", preset="instant", shapes={"input": [4, 3, 4, 4]})
    engine = record["runtime"]["engine"]
    assert engine["flags"] == ["FP16"]
    assert [shape[0] for shape in engine["inputs"]["input"]] == [1, 4, 4]
    assert (record["batch"], record["golden"]["after"]["ok"]) == (4, True)
