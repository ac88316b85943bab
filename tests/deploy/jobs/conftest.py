"""A device in a folder, work for it that lasts as long as told, and ways to disturb it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.client import install_agent
from deploy.jobs import Patience, Work
from deploy.local import LocalTarget
from tests.deploy.reaper import end_all

if TYPE_CHECKING:
    from tests.deploy.conftest import HandMadeBundle

QUICK = Patience(pauses_s=(0.05,), line_s=20, busy_s=0, wait_s=1)
WARM_UP = {"min_seconds": 0, "min_count": 3, "window": 1, "tolerance": 1e9, "max_seconds": 9}
NAMES = ("manifest.json", "fp32.onnx", "golden.npz", "eval.npy")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[LocalTarget]:
    work = LocalTarget("board", (sys.executable,), tmp_path / "device")
    work.folder.mkdir()
    install_agent(work)
    yield work
    end_all(tmp_path)


@pytest.fixture
def work(bundle: HandMadeBundle, tmp_path: Path) -> Work:
    request = {
        "bundle": "bundle",
        "precision": "fp32",
        "runtime": "onnxruntime",
        "batch": 1,
        "threads": 1,
        "preset": {"min_seconds": 0, "min_count": 10, "warm_up": WARM_UP, "name": "test"},
        "evaluate": True,
        "out": "samples.npz",
    }
    files = {f"bundle/{name}": bundle.folder / name for name in NAMES}
    return Work(verb="profile", request=request, files=files, results={"samples.npz": tmp_path / "out.npz"})


def lasting(work: Work, seconds: float = 60) -> Work:
    """The same work, taking `seconds`."""
    return replace(work, request={**work.request, "preset": {**work.request["preset"], "min_seconds": seconds}})


class Heard(list[str]):
    """Keeps what a job says, and calls `then` once it says that it measures."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.then = then

    def __call__(self, text: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.append(text)
        if text == "measuring":
            self.then()


def processes(folder: Path, verb: str) -> list[int]:
    """The agent's processes that work for jobs of this device."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inside = folder in (path / "cwd").readlink().parents
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if inside and verb.encode() in words:
            found.append(int(path.name))
    return found


def killing(target: LocalTarget, verb: str, number: signal.Signals) -> Callable[[], None]:
    def kill() -> None:
        for process in processes(target.folder, verb):
            os.kill(process, number)

    return kill


def job_folder(target: LocalTarget) -> Path:
    (folder,) = (target.folder / "jobs").iterdir()
    return folder
