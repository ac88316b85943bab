"""The agent at work under every Python of this machine: what needs no numpy, so that any interpreter will do."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.agent import PROTOCOL
from deploy.client import call_agent, install_agent
from deploy.jobs import Patience, Work, run_job
from deploy.local import LocalTarget
from deploy.target import DeviceError
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
