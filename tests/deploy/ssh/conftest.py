"""A real sshd on loopback, with keys and a home of its own, as the device `board` of a devices.toml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.loopback import SSHD, Board
from deploy import deployment, jobs, presets, ssh
from deploy.jobs import Patience, Progress
from deploy.measure import profile_bundle
from tests.deploy.reaper import end_all


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    if not Path(SSHD).exists():
        pytest.skip("no sshd here: install openssh-server (it need not run as a service)")
    made = Board.made(tmp_path)
    made.start()
    monkeypatch.setenv("AFPKD_DEVICES", str(tmp_path / "devices.toml"))
    # A dead line shall be seen in seconds here.
    monkeypatch.setattr(ssh, "OPTIONS", {**ssh.OPTIONS, "ServerAliveInterval": "1", "ServerAliveCountMax": "2"})
    yield made
    made.stop()
    end_all(tmp_path)  # jobs go on without their connection


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Retries come at once, and following asks often."""
    patience = Patience(pauses_s=(0.05,), wait_s=1, busy_s=0, line_s=20)
    monkeypatch.setattr(jobs, "Patience", lambda: patience)
    monkeypatch.setattr(deployment, "Patience", lambda: patience)
    yield


def lasting(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the preset `instant` take a while."""
    slow = replace(presets.find_preset("instant"), min_seconds=seconds)
    monkeypatch.setitem(presets._PRESETS, "instant", slow)


def profiled(bundle: Path, out: Path, progress: Progress = lambda *event: None, **changes: Any) -> dict[str, Any]:
    """The stage `profile` of a bundle on the board."""
    asked = {"device": "board", "precision": "fp32", "preset": "instant", "threads": 1, **changes}
    return profile_bundle(bundle, out=out, recipe="tiny", config_digest="0", progress=progress, **asked)
