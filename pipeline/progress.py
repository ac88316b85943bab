"""Progress of a stage: events for the process that runs the graph, plain lines for a person who runs one verb alone."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from afpkd.record import Json

EVENTS_VARIABLE = "AFPKD_EVENTS"
"""Environment variable: the file to which stages append events, one JSON object a line."""

_SECONDS_BETWEEN_STEPS = 0.5


class StageProgress:
    """What one stage says while it works. `stage` is how it is called before a person, such as `student`.

    silent: says nothing, as all but the first of several processes.
    """

    def __init__(self, stage: str, *, silent: bool = False) -> None:
        self.stage, self.silent = stage, silent
        self._events = os.environ.get(EVENTS_VARIABLE)
        self._last_step = 0.0

    def say(self, text: str) -> None:
        """One line for a person."""
        self._emit({"text": text})

    def error(self, text: str) -> None:
        """Why the stage stops: one line with what, where, what to do."""
        self._emit({"error": text})

    def step(self, done: int, total: int, row: Json | None = None) -> None:
        """`done` of `total` steps; `row` = a finished epoch, which becomes a line."""
        if row is not None:
            self.say(_epoch_line(row))
        now = time.monotonic()
        if done in (1, total) or now - self._last_step > _SECONDS_BETWEEN_STEPS:
            self._last_step = now
            self._emit({"done": done, "total": total})

    def _emit(self, event: dict[str, Any]) -> None:
        if self.silent:
            return
        if self._events:
            line = json.dumps({"stage": self.stage, **event}) + "\n"
            with Path(self._events).open("a", encoding="utf-8") as file:
                file.write(line)  # one short append: whole lines, also from stages side by side
        elif "text" in event or "error" in event:
            sys.stderr.write(event_line({"stage": self.stage, **event}) + "\n")


def event_line(event: Json) -> str:
    """The line of a `text` or `error` event."""
    return f"error: {event['error']}" if "error" in event else f"{event['stage']:<12} {event['text']}"


def _epoch_line(row: Json) -> str:
    losses = "  ".join(f"{name} {value:.3f}" for name, value in row["losses"].items())
    speed = f"{row['images_per_s']:.0f} images/s"
    score = next(value for name, value in row.items() if name.startswith("heldout_"))
    return f"epoch {row['epoch']:>3}  {losses}  held-out {score:.2f} %  {speed}"
