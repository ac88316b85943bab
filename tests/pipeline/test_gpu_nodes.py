"""One answer to "is there a GPU": for a run, for its processes, for the doctor."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import doctor_machine, gpu_nodes
from pipeline.gpu_nodes import num_gpus


def dev_with(folder: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> Path:
    for name in names.split():
        (folder / name).touch()
    monkeypatch.setattr(gpu_nodes, "_DEV", folder)
    return folder


@pytest.mark.parametrize(
    ("names", "num", "first"),
    [
        ("null nvidiactl nvidia-uvm", 0, None),
        ("nvidiactl nvidia1 nvidia0", 2, "nvidia0"),
        ("dxg null", None, "dxg"),
        ("nvhost-ctrl-gpu nvhost-gpu nvmap", None, "nvhost-ctrl-gpu"),
        ("nvgpu", None, "nvgpu"),
        ("nvgpu nvidia0", 1, "nvidia0"),
    ],
)
def test_gpus_of_a_driver_are_counted_and_others_are_there(
    names: str, num: int | None, first: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_with(tmp_path, monkeypatch, names)
    assert num_gpus() == num
    assert [path.name for path in gpu_nodes.gpu_nodes()[:1]] == ([first] if first else [])


@pytest.mark.parametrize(
    ("names", "facts", "said"),
    [
        ("nvgpu", {"cuda": True, "gpu": "Orin", "torch": "2.8"}, "Orin, no driver, used by torch 2.8"),
        ("nvgpu", {"torch": "2.8"}, "/nvgpu is there (no driver), but torch cannot use it"),
        ("", {"cuda": True, "gpu": "X1", "torch": "2.8"}, "X1, no driver, used by torch 2.8"),
        ("", {"torch": "2.8"}, "no NVIDIA GPU: networks train on the CPU"),
    ],
)
def test_the_doctor_believes_torch_first_then_the_kernel(
    names: str, facts: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_with(tmp_path, monkeypatch, names)
    monkeypatch.setattr(doctor_machine, "imported", lambda: facts)
    monkeypatch.setattr(doctor_machine, "_driver", lambda: "no driver")
    (found,) = doctor_machine.gpu()
    assert said in str(found)
