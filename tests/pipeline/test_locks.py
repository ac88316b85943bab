"""A folder in use is refused with its holder's name, and free as soon as the holder is gone, however it went."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afpkd.errors import UserError
from afpkd.record import write_record
from pipeline import locks
from pipeline.doctor import Finding, Level
from pipeline.doctor_places import unfinished
from pipeline.holder import HOLDER
from pipeline.locks import locked, stage_lock
from pipeline.progress import EVENTS_VARIABLE


def test_a_second_run_on_the_same_folder_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=rf"is in use by pid {os.getpid()} on .* since \d{{4}}-"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):  # and free again
        pass


def test_a_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"pid {holder.pid}"), locked(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path):
        pass


def test_a_stage_that_a_job_still_works_on_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "ENDING_SECONDS", 0)
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    with (
        stage_lock(tmp_path / "student"),
        pytest.raises(UserError, match=rf"student is in use by pid {os.getpid()} on "),
        stage_lock(tmp_path / "student"),
    ):
        pass
    with stage_lock(tmp_path / "student"):
        pass


def found(runs: Path) -> Finding:
    return next(unfinished(runs))


def test_the_lock_says_whether_runs_are_in_use_and_not_who_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run's pid may be another process by now, its container's name is no machine's any more."""
    here, there = ({"pid": os.getpid(), "host": host, "since": "then"} for host in (os.uname().nodename, "c0ffee"))
    for holder in (here, there):
        with locked(tmp_path):
            write_record(tmp_path / HOLDER, holder)
            assert found(tmp_path).level is Level.bad
        write_record(tmp_path / HOLDER, holder)
        left = found(tmp_path)
        assert left.level is Level.ok
        assert ("if this file system tells of locks on c0ffee" in left.found) == (holder is there)

    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "no such locks here")

    monkeypatch.setattr(fcntl, "flock", unknown)
    believed = found(tmp_path)
    assert believed.level is Level.bad
    assert believed.found.endswith("on c0ffee since then (so says .lock.json: there is no lock to ask)")
