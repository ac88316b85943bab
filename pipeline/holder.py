"""Who works in a folder of runs or of a stage: a process, its machine, and whether it still lives. Takes no lock."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from afpkd.record import Json

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
