"""A runtime is a line of `RUNTIMES`: what host and agent take from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from afpkd.errors import UserError
from deploy import deployment, devices
from deploy.agent import probe, runtimes
from deploy.agent.bundle import Bundle
from deploy.agent.errors import AgentError
from deploy.devices import Device
from deploy.jobs import Work
from deploy.presets import find_preset
from deploy.profile_job import ProfileJob
from deploy.target import DeviceError
from export.bundle import read_manifest
from tests.deploy.conftest import HandMadeBundle


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runtimes.RUNTIMES, "onnx", runtimes.Kind("no_such_file", reads="onnxruntime"))


@pytest.fixture(name="folder")
def _folder(bundle: HandMadeBundle) -> Path:
    """A bundle whose one file is ONNX Runtime's."""
    manifest = bundle.manifest()
    for entry in manifest["files"]:
        entry["runtime"] = "onnxruntime"
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    return bundle.folder


def sent_to(runtime: str, folder: Path) -> tuple[Callable[[], Work], Callable[[], Work]]:
    """What a measurement and a release of the bundle send to a board of this runtime."""
    board = Device(name="board", transport="ssh", runtime=runtime, python=("python3",))
    preset = find_preset("quick")
    measured = ProfileJob(folder, board, "fp32", preset, 1, ())
    return (
        lambda: measured.work("default", preset, 1, folder),
        lambda: deployment._work(folder, read_manifest(folder), board, "fp32", "release", 2, ["python3"]),
    )


def test_it_gets_the_files_of_the_runtime_that_it_reads_like(folder: Path) -> None:
    for ours, same in zip(sent_to("onnx", folder), sent_to("onnxruntime", folder), strict=True):
        assert ours().files == same().files


def test_a_bundle_without_a_file_for_it_is_one_line_that_names_the_device(folder: Path) -> None:
    """The same, whether it was to be measured or deployed."""
    told = rf"^device board: {folder}: no fp32 file for tensorrt \(it has: none\): add it to the recipe's export"
    for work in sent_to("tensorrt", folder):
        with pytest.raises(DeviceError, match=told):
            work()


def test_the_agent_chooses_its_newest_file(folder: Path) -> None:
    here = Bundle(str(folder))
    assert runtimes.version("onnx", {}) is None  # of another: no bound is held to it, its module is not looked for
    assert here.entry("fp32", "onnx", None) == here.entry("fp32", "onnxruntime", "99")
    with pytest.raises(AgentError, match="no fp32 file for tensorrt"):
        here.entry("fp32", "tensorrt", None)


def test_devices_toml_knows_it_and_tells_it_nothing_of_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "devices.toml"
    monkeypatch.setenv("AFPKD_DEVICES", str(path))
    for runtime, told in (("onnx", False), ("onnxruntime", False), ("tensorrt", True), ("auto", True)):
        path.write_text(f'[board]\nhost = "board"\nruntime = "{runtime}"\n')
        assert bool(devices.find_device("board").options) == told, runtime
        path.write_text(f'[board]\nhost = "board"\nruntime = "{runtime}"\nuse_dla = true\n')
        if not told:
            with pytest.raises(UserError, match=r"board\.use_dla: needs runtime = 'tensorrt' or 'auto'"):
                devices.find_device("board")


def test_a_device_that_has_its_package_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_module_version", {"numpy": "2.3", "onnx": "1.20"}.get)
    found = probe.runtimes()
    assert (found["runtimes"], found["onnx"], found["onnxruntime"]) == (["onnx"], "1.20", None)
    assert probe.runtimes()["advice"] == []


def test_a_runtime_that_is_none_is_named_with_those_that_are(tmp_path: Path) -> None:
    assert runtimes.version("tflite", {}) is None
    with pytest.raises(AgentError, match="unknown runtime tflite; known: onnx, onnxruntime, tensorrt"):
        runtimes.load("tflite", runtimes.Loading(tmp_path / "m.onnx", "x", "y", 1))
