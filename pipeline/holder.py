"""Who works in a folder of runs or of a stage: a process, its machine, and whether it still lives. Keeps no lock."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path

from afpkd.record import Json

LOCK = ".lock"
HOLDER = ".lock.json"
"""In a folder of runs, while `pipeline.locks.locked` holds it, or after a SIGKILL."""


def read_object(path: Path) -> Json:
    """A small JSON file of ours; empty where it is gone or broken (a power cut), which is no reason to stop."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def is_alive(holder: Json) -> bool:
    """Whether the process `pid` on `host` is there; of another machine's nobody here can tell, and it is believed."""
    if holder.get("host") != os.uname().nodename:
        return bool(holder)
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def is_locked(folder: Path) -> bool | None:
    """Whether a process holds the lock on `folder`; None: it has none, or this file system or user cannot ask.

    The kernel drops it with its process. It is a `flock`: one of another machine is seen where the file system carries
    locks, as a shared one must (docs/cluster.md).
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not see each other
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def is_held(folder: Path, holder: Json) -> bool:
    """Whether somebody works in `folder`: its lock says so, or where that cannot be asked, what `holder` left."""
    locked = is_locked(folder)
    return is_alive(holder) if locked is None else locked
