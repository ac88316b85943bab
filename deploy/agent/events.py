"""What a job says while it works: one JSON line an event, appended to `events.jsonl` in the job's folder.

A verb that runs alone has no such file, and says nothing. Nothing is said while latency is being measured.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Json = dict[str, Any]

EVENTS = "events.jsonl"


def say(text: str, *, done: int, total: int) -> None:
    """Append one event: `text` for a person, and that `done` of `total` steps are behind it."""
    append(Path(EVENTS), {"text": text, "done": done, "total": total})


def append(path: Path, event: Json) -> None:
    """Append an event with the device's time, in one write: a reader sees whole lines or none. Not where no file is."""
    if path.exists():
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(event, time_s=time.time())) + "\n")


def read_from(path: Path, offset: int) -> tuple[list[Json], int]:
    """Give the whole events from byte `offset` on, and the offset behind them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)
