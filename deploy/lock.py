"""One measurement a device at a time: two at once would time each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from afpkd.errors import UserError
from afpkd.record import private_folder, read_record, write_record
from deploy.jobs import Progress


@contextmanager
def only_measurement(device: str, progress: Progress, *, wait_s: float = 900.0) -> Iterator[None]:
    """Hold the device for this user's measurements; wait for another one, UserError naming it after `wait_s`.

    The kernel drops the lock with its process, however that dies: it never goes stale.
    """
    folder = private_folder(Path(tempfile.gettempdir()) / f"afpkd-{os.getuid()}")
    lock, holder = FileLock(folder / f"{device}.lock"), folder / f"{device}.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting: device {device} is being measured by {_holder_named(holder)}", 0, 0)
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            named = _holder_named(holder)
            raise UserError(
                "E_BUSY", f"device {device} is being measured by {named}: try again when that is done"
            ) from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_record(holder, {"pid": os.getpid(), "host": os.uname().nodename, "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder_named(holder: Path) -> str:
    try:
        facts = read_record(holder)
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (UserError, KeyError):
        return "another process"  # it has the lock, and has not written its name yet
