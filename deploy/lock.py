"""One measurement a device at a time: two at once would time each other."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from afpkd.errors import UserError
from afpkd.record import private_folder, write_text

_log = logging.getLogger(__name__)


@contextmanager
def only_measurement(device: str, *, wait_s: float = 900.0) -> Iterator[None]:
    """Hold the device for this user's measurements; wait for another one, UserError naming it after `wait_s`.

    The kernel drops the lock with its process, however that dies: it never goes stale.
    """
    folder = private_folder(Path(tempfile.gettempdir()) / f"afpkd-{os.getuid()}")
    lock, holder = FileLock(folder / f"{device}.lock"), folder / f"{device}.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("device %s is being measured by %s: waiting", device, _holder_named(holder))
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            named = _holder_named(holder)
            raise UserError(
                "E_BUSY", f"device {device} is being measured by {named}: try again when that is done"
            ) from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(holder, json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "since": since}))
        yield
    finally:
        lock.release()


def _holder_named(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError):
        return "another process"  # it has the lock, and has not written its name yet
