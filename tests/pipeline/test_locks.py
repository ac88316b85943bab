"""A folder in use is refused with its holder's name, and free as soon as the holder is gone, however it went."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from afpkd.errors import UserError
from pipeline import locks
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
