"""One run a folder of runs, one job a stage: locks that the kernel releases with their process, and that name it."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from afpkd.errors import UserError
from afpkd.record import read_record, write_record
from pipeline.holder import HOLDER, LOCK
from pipeline.progress import EVENTS_VARIABLE

ENDING_SECONDS = 10.0


@contextmanager
def locked(runs: Path, *, wait_s: float = 0) -> Iterator[None]:
    """Hold the folder of runs alone; UserError naming who holds it, after `wait_s`."""
    lock, holder = filelock.FileLock(runs / LOCK), runs / HOLDER
    try:
        lock.acquire(timeout=wait_s)
    except filelock.Timeout:
        raise UserError(
            "E_RUNS_BUSY", f"{runs} is in use by {_holder(holder)}: wait for it, end it, or use another RUNS"
        ) from None
    try:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_record(holder, {"pid": os.getpid(), "host": os.uname().nodename, "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def stage_lock(folder: Path) -> Iterator[None]:
    """Hold a stage's folder alone: on a cluster a job may outlive its run, and a later run start the stage again."""
    if not os.environ.get(EVENTS_VARIABLE):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait_s=ENDING_SECONDS):  # of a job before that is ending
        yield


def _holder(path: Path) -> str:
    try:
        held = read_record(path)
        return f"pid {held['pid']} on {held['host']} since {held['since']}"
    except (UserError, KeyError):
        return "another run"
