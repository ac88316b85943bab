"""Progress of a stage: events for the process that runs the graph, or for the screen of a person who runs one verb."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from afpkd.record import Json
from pipeline.parent import WORKER_VARIABLE

EVENTS_VARIABLE = "AFPKD_EVENTS"
"""Environment variable: the file to which stages append events, one JSON object a line."""

QUIET_VARIABLE = "AFPKD_QUIET"
"""Environment variable: with any value, errors alone are shown. `--quiet` sets it."""

_SECONDS_BETWEEN_STEPS = 0.5
_LISTENER: ContextVar[Callable[[Json], None] | None] = ContextVar("listener", default=None)


class StageProgress:
    """What one stage says while it works. `stage` is how it is called before a person, such as `student`.

    An event has `stage`, `job` (one process is one job, whatever its stage is called) and one of: `text`; `error`;
    `done` of `total` steps with a `note`; `busy` with what, for nobody knows how long; `ended`.
    silent: says nothing, as all but the first of several processes; those are one job.
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

    def busy(self, text: str) -> None:
        """What is done now, where there is nothing to count; no line of its own."""
        self._emit({"busy": text})

    def end(self) -> None:
        """Nothing more is to be shown of it."""
        self._emit({"ended": True})

    def step(self, done: int, total: int, row: Json | None = None, note: str = "") -> None:
        """`done` of `total` steps; `row` = a finished epoch, which becomes a line; `note`: beside the bar."""
        if row is not None:
            self.say(_epoch_line(row))
        now = time.monotonic()
        if row is not None or done in (1, total) or now - self._last_step > _SECONDS_BETWEEN_STEPS:
            self._last_step = now
            self._emit({"done": done, "total": total, "note": note})

    def job(self, text: str, done: int, total: int) -> None:
        """What a device's job says (`deploy.jobs.Progress`): a step, or (total 0) a line."""
        if total:
            self.step(done, total, note=text)
        else:
            self.say(text)

    def _emit(self, told: dict[str, Any]) -> None:
        if self.silent:
            return
        job = os.environ.get(WORKER_VARIABLE) or str(os.getpid())
        event, listener = {"stage": self.stage, "job": job, **told}, _LISTENER.get()
        if self._events:
            with Path(self._events).open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")  # one short append: whole lines, also from stages side by side
        elif listener:
            listener(event)
        elif "error" in event or ("text" in event and not os.environ.get(QUIET_VARIABLE)):
            sys.stderr.write(event_line(event) + "\n")


@contextmanager
def heard_by(listener: Callable[[Json], None]) -> Iterator[None]:
    """Tell `listener` every event of this process for as long as the context lasts, except inside a run."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def new_events(file: TextIO) -> Iterator[Json]:
    """The events appended to an open file since the last call, whole lines only.

    Over a network file system lines of several machines may run into each other: such a line is left out.
    """
    while True:
        before = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(before)
            return
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "stage" in event:
                yield event


def event_line(event: Json) -> str:
    """The line of a `text` or `error` event."""
    return f"error: {event['error']}" if "error" in event else f"{event['stage']:<12} {event['text']}"


def _epoch_line(row: Json) -> str:
    """A finished epoch in a line: each loss term, the held-out score, the speed."""
    losses = "  ".join(f"{name} {value:.3f}" for name, value in row["losses"].items())
    speed = f"{row['images_per_s']:.0f} images/s"
    return f"epoch {row['epoch']:>3}  {losses}  held-out {heldout_of(row)[1]:.2f} %  {speed}"


def heldout_of(row: Json) -> tuple[str, float]:
    """The name (`top1`, `ap`) and value of the score by which epochs are chosen."""
    return next((name.removeprefix("heldout_"), value) for name, value in row.items() if name.startswith("heldout_"))
