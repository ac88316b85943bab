"""What a person sees of work that takes time: bars on a terminal, a line an event elsewhere, errors alone with --quiet.

NO_COLOR is honoured (rich does it). Everything goes to stderr: stdout is for results.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from afpkd.record import Json
from pipeline.progress import QUIET_VARIABLE, StageProgress, event_line, heard_by

WHOLE = "run"
"""The job that is all the others; its stages take unlike times, so that no time left is told of it."""


class Screen:
    """Shows events of `pipeline.progress`, from this process or from a run's stages."""

    def __init__(self) -> None:
        self._quiet = bool(os.environ.get(QUIET_VARIABLE))
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(min_width=12, no_wrap=True)),
            BarColumn(20),
            TextColumn("{task.fields[share]}", markup=False, table_column=Column(width=4, no_wrap=True)),
            TextColumn(
                "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            _Clock(table_column=Column(justify="right", no_wrap=True)),
        )
        shown = self._console.is_terminal and not self._quiet
        self._bars = Progress(
            *columns, console=self._console, disable=not shown, transient=True, expand=True, refresh_per_second=4
        )
        self._tasks: dict[str, tuple[TaskID, int | None]] = {}

    def __enter__(self) -> Screen:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, event: Json) -> None:
        """Print a line, or move the bar of the event's job."""
        if "error" in event:
            self._line(event, "bold red")
        elif "text" in event:
            self._line(event)
        if "error" in event or "ended" in event:
            self._drop(event["job"])
        elif "text" not in event:
            self._move(event)

    def _line(self, event: Json, style: str | None = None) -> None:
        if "error" in event or not self._quiet:
            self._bars.console.print(event_line(event), markup=False, style=style)

    def _move(self, event: Json) -> None:
        job, total, done = event["job"], event.get("total"), event.get("done", 0)
        note = str(event.get("busy") or event.get("note", ""))
        share = f"{100 * done // total:>3}%" if total else ""
        task, before = self._tasks.get(job, (None, None))
        if task is None or total != before:  # another piece of work: its time left is told from its own steps
            self._drop(job)
            name, whole = event["stage"], event["stage"] == WHOLE
            task = self._bars.add_task(name, total=total, completed=done, whole=whole, note=note, share=share)
            self._tasks[job] = task, total
        self._bars.update(task, description=event["stage"], completed=done, note=note, share=share)

    def _drop(self, job: str) -> None:
        if job in self._tasks:
            self._bars.remove_task(self._tasks.pop(job)[0])


@contextmanager
def shown() -> Iterator[Screen]:
    """A screen for what this process says of itself: see `pipeline.progress`."""
    with Screen() as screen, heard_by(screen.show):
        yield screen


@contextmanager
def waiting(stage: str, what: str) -> Iterator[None]:
    """Show that this process is busy with something that has no steps."""
    with shown():
        StageProgress(stage).busy(what)
        yield


class _Clock(ProgressColumn):
    """The time left where it can be told, else the time that has passed."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """A task's cell."""
        left = None if task.fields["whole"] else task.time_remaining
        if left is not None and task.completed:
            return Text(f"{timedelta(seconds=int(left))} left", style="progress.remaining")
        return Text(str(timedelta(seconds=int(task.elapsed or 0))), style="progress.elapsed")
