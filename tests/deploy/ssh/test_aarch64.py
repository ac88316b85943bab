"""A board of another processor: an exported bundle on aarch64 under emulation, behind a real sshd, nothing mocked.

What is computed there is held against what this machine computes. How fast says nothing, and is not looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from afpkd.models import build_model
from bench.loopback import Board
from deploy import presets
from deploy.adopted import adopt_record
from deploy.agent.interpreter import VARIABLE
from deploy.client import call_agent, install_agent
from deploy.deployment import deploy_bundle
from deploy.local import LocalTarget
from deploy.pack import agent_archive
from deploy.presets import Preset, WarmUp
from export.build import build_bundle
from export.calibration import Calibration
from export.making import Order
from export.to_onnx import OPSET
from tests.deploy.ssh.conftest import profiled

pytestmark = pytest.mark.slow
NUM_IMAGES, CLASSES = 12, 10
BRIEF = Preset(
    name="brief",
    min_seconds=0,
    min_count=5,
    warm_up=WarmUp(min_seconds=0, min_count=3, window=1, tolerance=1e9, max_seconds=10),
)


@pytest.fixture(scope="module")
def emulated() -> list[str]:
    """The Python of an aarch64 Debian, as a device's `python`."""
    root, qemu = os.environ.get("AFPKD_AARCH64"), shutil.which("qemu-aarch64-static")
    if root is None or qemu is None:
        pytest.skip("no emulated board: apt install qemu-user-static, .ci/aarch64 FOLDER, AFPKD_AARCH64=FOLDER")
    return [qemu, "-L", root, f"{root}/usr/bin/python3"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet of the zoo with every precision, as exported by default (`default`) and in opset 19 (`opset19`)."""
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(0)
    images, net = blotches(), build_model("resnet8", num_classes=CLASSES, in_channels=3)
    inputs = torch.from_numpy(images) / 63.75 - 2
    with torch.no_grad():
        for _ in range(20):
            net.train()(inputs)  # statistics BatchNorm has really seen
        head = next(module for module in net.modules() if isinstance(module, torch.nn.Linear))
        head.bias.sub_(net.eval()(inputs).logits.mean(dim=0))  # else an untrained network says one class to everything
        logits = net(inputs).logits
    best = logits.topk(2).values
    clear = (best[:, 1] - best[:, 0]).argsort()[:NUM_IMAGES].numpy()  # whose class is no matter of rounding
    images, labels = images[clear], logits.argmax(dim=1).numpy()[clear]
    assert len(set(labels)) > 3
    written(net, images, labels, folder / "default", precisions=("fp32", "fp16", "int8"), opset=OPSET)
    written(net, images, labels, folder / "opset19", precisions=("fp16",), opset=19)
    return folder


def blotches() -> NDArray[np.uint8]:
    """Images that differ in more than noise, which a network averages out."""
    coarse = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 4), dtype=np.uint8)
    return coarse.repeat(8, axis=2).repeat(8, axis=3)


def written(
    net: torch.nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], out: Path, **changes: Any
) -> None:
    order = Order(
        role="student",
        arch="resnet8",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        lineage={"weights": "0" * 64, "record": "0" * 64},
        out=out,
        calibration=Calibration(images, list(range(len(images)))),
        **changes,
    )
    build_bundle(net, order, images=images, labels=labels, label_names=list("0123456789"))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets._PRESETS, "brief", BRIEF)


@pytest.mark.usefixtures("brief")
def test_the_whole_stage_on_another_processor(board: Board, emulated: list[str], bundles: Path, tmp_path: Path) -> None:
    """fp32 through ssh, as a job whose every process is an emulated one: the logits are those of this machine."""
    board.describe(python=emulated)
    records, logits = [], []
    for device in ("board", "local"):
        out = tmp_path / f"{device}.json"
        records.append(profiled(bundles / "default", out, device=device, preset="brief"))
        with np.load(out.with_suffix(".npz")) as arrays:
            logits.append(arrays["logits"])
    there, here = records
    assert "-aarch64-" in there["machine"]["system"]
    assert "-aarch64-" not in here["machine"]["system"]
    assert there["golden"]["after"]["ok"]
    assert there["top1"] == here["top1"] == 100
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-5)


def test_by_hand_under_the_systems_python(emulated: list[str], bundles: Path, tmp_path: Path) -> None:
    """A Debian's own python3, numpy and ONNX Runtime of another processor, no host: its record, judged here."""
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    bundle = tmp_path / "run" / "student" / "bundle"
    shutil.copytree(bundles / "default", bundle)
    command = [*emulated, "-I", "agent.pyz", "profile", str(bundle), "--precision", "int8"]
    environment = {**os.environ, VARIABLE: json.dumps(emulated)}  # how children start, which is the emulator's need
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = adopt_record(
        tmp_path / "student-int8.json", tmp_path / "run", device="orin1", recipe="r", config_digest="0"
    )
    assert "-aarch64-" in record["machine"]["system"]
    assert (record["runtime"]["name"], record["top1"]) == ("onnxruntime", 100)
    assert record["n"] >= 200
    assert record["latency_ms"]["p50_lo"] <= record["latency_ms"]["p50"] <= record["latency_ms"]["p50_hi"]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("int8", 5e-2)])
def test_smaller_types_compute_there_what_they_compute_here(
    emulated: list[str], bundles: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    logits = []
    for number, python in enumerate((emulated, [sys.executable])):
        target = LocalTarget("board", python, tmp_path / str(number))
        target.folder.mkdir()
        install_agent(target)
        answer = call_agent(target, "profile", request(bundles / "default", precision))
        assert answer["golden"]["before"]["ok"]
        assert answer["golden"]["after"]["ok"]
        assert ("-aarch64-" in answer["machine"]["system"]) == (python == emulated)
        with np.load(target.folder / "out.npz") as arrays:
            logits.append(arrays["logits"])
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(*(found.argmax(axis=1) for found in logits))


def request(bundle: Path, precision: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"bundle": str(bundle), "precision": precision, "runtime": "onnxruntime"}
    asked |= {"mode": "precise", "observe": False}  # no job, so nobody tells its child the emulator
    return {**asked, "batch": 1, "threads": 1, "preset": asdict(BRIEF), "evaluate": True, "out": "out.npz"}


def test_why_opset_18_is_the_default(board: Board, emulated: list[str], bundles: Path, tmp_path: Path) -> None:
    """ONNX Runtime on Arm has no fp16 AveragePool from opset 19 on. Once it has, this fails, and newer opsets will do.

    The file of opset 18 is right there: it is deployed, and predicts what this machine's does.
    """
    board.describe(python=emulated, runtime="onnxruntime")
    for name, opset in (("default", OPSET), ("opset19", 19)):
        graph = onnx.load(bundles / name / "fp16.onnx")
        assert (graph.opset_import[0].version, count(graph, "AveragePool")) == (opset, 1)
    (row,) = deploy_bundle(bundles / "opset19", ["board"], precision="fp16", keep=3, progress=lambda *event: None)
    assert "AveragePool(19)" in row["error"]
    assert row["error"].endswith("[E_LOAD]")
    assert not (board.work / "current").exists()
    (row,) = deploy_bundle(bundles / "default", ["board"], precision="fp16", keep=3, progress=lambda *event: None)
    assert row["release"]["golden"]["ok"]
    labels = np.load(bundles / "default" / "eval_labels.npy")
    np.save(tmp_path / "some.npy", np.load(bundles / "default" / "eval.npy")[:8])
    command = [*emulated, "-I", str(board.work / "current" / "agent.pyz"), "predict", str(tmp_path / "some.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [json.loads(line)["top"][0]["class"] for line in done.stdout.splitlines()] == list(labels[:8])


def count(graph: onnx.ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in graph.graph.node)
