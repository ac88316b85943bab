"""The agent at work under every Python of this machine, without numpy; and measuring under 3.8 (JetPack 5) with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.agent import PROTOCOL
from deploy.client import call_agent, install_agent
from deploy.jobs import Patience, Work, run_job
from deploy.local import LocalTarget
from deploy.pack import agent_archive
from deploy.target import DeviceError
from tests.deploy.conftest import HandMadeBundle
from tests.deploy.test_pack import pythons


@pytest.mark.parametrize("python", pythons())
def test_probe_store_jobs_and_gc(python: str, tmp_path: Path) -> None:
    target = LocalTarget("board", (python,), tmp_path / "device")
    target.folder.mkdir()
    install_agent(target)
    (tmp_path / "file").write_text("travels")
    assert call_agent(target, "probe", {})["protocol"] == PROTOCOL
    # `version` as a job: submitted, supervised, followed, fetched from, forgotten
    work = Work(
        verb="version", request={}, files={"bundle/file": tmp_path / "file"}, results={"log.txt": tmp_path / "log"}
    )
    answer = run_job(target, work, lambda *event: None, Patience(pauses_s=(0.05,), wait_s=1))
    assert python == target.python[0]
    assert answer["protocol"] == PROTOCOL
    assert answer["clocks"] == "as-is"
    assert (tmp_path / "log").read_text() == ""  # not a warning from any of them
    with pytest.raises(DeviceError, match="nothing is deployed here"):
        call_agent(target, "rollback", {})
    assert call_agent(target, "status", {}) == {"releases": [], "current": None}
    assert call_agent(target, "gc", {"all": True})["freed_bytes"] > 0
    assert not target.folder.exists()


@pytest.fixture(scope="module")
def jetpack_5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python 3.8 with the last numpy and ONNX Runtime it can have, in a folder of its own: about 30 MB."""
    found = [python for python in pythons() if is_python_3_8(python)]
    if not found:
        pytest.skip("no Python 3.8 here (pyenv install 3.8)")
    folder = tmp_path_factory.mktemp("python3.8")
    subprocess.run([found[0], "-m", "venv", "--without-pip", str(folder)], check=True)
    wheels = ["--python-version", "3.8", "--only-binary", ":all:", "--no-deps", "numpy==1.24.4", "onnxruntime==1.19.2"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    site = folder / "lib" / "python3.8" / "site-packages"
    done = subprocess.run([*pip, "--target", str(site), *wheels], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no wheels for Python 3.8: {done.stderr.strip().splitlines()[-1]}")
    return str(folder / "bin" / "python")


def is_python_3_8(python: str) -> bool:
    code = "import sys; sys.exit(sys.version_info[:2] != (3, 8))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def asked(python: str, folder: Path, words: list[str], request: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the packed agent answers there; nothing may warn."""
    (folder / "agent.pyz").write_bytes(agent_archive())
    command = [python, "-I", "-W", "error", "agent.pyz", *words]
    text = "" if request is None else json.dumps({"protocol": PROTOCOL, **request})
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_bundle_is_measured_under_python_3_8(jetpack_5: str, bundle: HandMadeBundle, tmp_path: Path) -> None:
    """All that a job does there, and what a person at the board does."""
    warm_up = {"min_seconds": 0, "min_count": 30, "window": 10, "tolerance": 1e9, "max_seconds": 10}
    request = {
        **{"bundle": "bundle", "precision": "fp32", "runtime": "onnxruntime", "batch": 1, "threads": 1},
        "preset": {"min_seconds": 0.1, "min_count": 50, "warm_up": warm_up},
        **{"evaluate": True, "out": "samples.npz", "scenarios": ["single_stream", "periodic", "offline"]},
    }
    answer = asked(jetpack_5, tmp_path, ["profile"], request)
    assert [check["ok"] for check in answer["golden"].values()] == [True, True]
    with np.load(tmp_path / "samples.npz") as arrays:
        assert len(arrays["samples_ns"]) >= 50
        assert {"periodic_30_ns", "offline_32_ns", "state_values"} <= set(arrays)
        assert (arrays["logits"].argmax(axis=1) != np.load(bundle.folder / "eval_labels.npy")).sum() == bundle.wrong
    record = asked(jetpack_5, tmp_path, ["profile", "bundle", "--runtime", "onnxruntime"])
    assert (record["n"] >= 200, record["top1"]) == (True, 90.0)


def test_any_file_is_measured_under_python_3_8(jetpack_5: str, bundle: HandMadeBundle, tmp_path: Path) -> None:
    images = np.zeros((4, 1, 3, 4, 4), np.float32)
    logits = np.zeros((4, 1, 5), np.float32)  # the layer has no bias
    np.savez(tmp_path / "feeds.npz", **{"in/input": images, "out/logits": logits})  # type: ignore[arg-type]
    warm_up = {"min_seconds": 0, "min_count": 30, "window": 10, "tolerance": 1e9, "max_seconds": 10}
    request = {
        **{"model": "bundle/fp32.onnx", "feeds": "feeds.npz", "batched": True, "runtime": "onnxruntime", "threads": 1},
        "tolerances": {"max_abs": 0.05, "cosine": -1.0, "argmax_agreement": 0.0},
        "preset": {"min_seconds": 0, "min_count": 50, "warm_up": warm_up},
        **{"out": "samples.npz", "scenarios": ["single_stream", "offline"]},
    }
    answer = asked(jetpack_5, tmp_path, ["measure"], request)
    assert answer["golden"]["after"]["max_abs"] == 0
    assert answer["runtime"]["version"] == "1.19.2"
