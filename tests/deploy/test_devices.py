from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from afpkd.errors import UserError
from deploy import devices, turns
from deploy.devices import Device, find_device
from deploy.jobs import Progress
from deploy.measure import profile_bundle
from tests.deploy.conftest import HandMadeBundle


def profiled(bundle: HandMadeBundle, folder: Path, device: str, preset: str) -> None:
    profile_bundle(
        bundle.folder,
        device=device,
        precision="fp32",
        preset=preset,
        threads=0,
        out=folder / "record.json",
        recipe="test",
        config_digest="0",
    )


def test_this_machines_gpu_is_a_device_that_runs_tensorrt() -> None:
    device = find_device("local-gpu")
    assert (device.runtime, device.transport, device.python) == ("tensorrt", "local", (sys.executable,))


def test_cpu_and_gpu_of_one_machine_are_not_measured_at_once(
    bundle: HandMadeBundle, tmp_path: Path, instant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    @contextmanager
    def only_measurement(name: str, progress: Progress) -> Iterator[None]:
        held.append(name)
        raise UserError("E_BUSY", "busy")
        yield

    monkeypatch.setattr(turns, "only_measurement", only_measurement)
    for name in ("local", "local-gpu"):
        with pytest.raises(UserError, match="busy"):
            profiled(bundle, tmp_path, name, instant)
    assert held == ["local", "local"]
    assert Device(name="orin1", transport="ssh", runtime="tensorrt", python=("python3",)).machine == "orin1"


def test_a_devices_options_reach_its_runtime(
    bundle: HandMadeBundle, tmp_path: Path, instant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Device(
        name="board", transport="local", runtime="onnxruntime", python=(sys.executable,), options={"use_dla": True}
    )
    monkeypatch.setattr(devices, "devices", lambda: {"board": board})
    with pytest.raises(UserError, match=r"device board: onnxruntime has no options, .*use_dla.* \[E_OPTION\]"):
        profiled(bundle, tmp_path, "board", instant)
