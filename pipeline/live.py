"""What a training leaves for whoever watches it: its epochs so far, where it is now, and TensorBoard's event files.

`progress.jsonl` holds the finished epochs as rows of metrics.jsonl, `progress.json` the place of the moment. Both lie
beside the checkpoint, unknown to the graph, are replaced in one step, and go when metrics.jsonl is there. The rows are
those of the training's own state, written whole: a run that continues repeats none.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from afpkd.record import Json
from pipeline.event_files import EventFiles
from pipeline.progress import StageProgress, heldout_of

if TYPE_CHECKING:
    from afpkd.train import Fitting

EPOCHS, NOW = "progress.jsonl", "progress.json"
_SECONDS_BETWEEN = 1.0

Pictures = Callable[[Path], Sequence[Path]]
"""Draws what there is to see of a training into a folder; gives the files (PNG)."""


class Live:
    """Tells of one training, epoch by epoch; `report` is what the training loop calls."""

    def __init__(
        self,
        fitting: Fitting,
        folder: Path,
        progress: StageProgress,
        event_files: EventFiles | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        self._fitting, self._folder, self._progress = fitting, folder, progress
        self._event_files, self._pictures = event_files, pictures
        self._began = self._last = (time.monotonic(), fitting.step)
        self._speed = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._write_epochs()
        self._write_now(fitting.step)
        if event_files:
            for row in fitting.history:
                event_files.epoch(row)

    def report(self, step: int, total: int, row: Json | None) -> None:
        """`step` of `total`, and the epoch that it ended, if it did."""
        now = time.monotonic()
        if row is not None or now - self._last[0] > _SECONDS_BETWEEN:
            num_images = (step - self._last[1]) * self._fitting.settings.batch_size
            # At an epoch's end the time since then holds the held-out measurement, too.
            self._speed = row["images_per_s"] if row else num_images / max(now - self._last[0], 1e-9)
            self._last = now, step
            self._write_now(step)
        if row is not None:
            self._write_epochs()
            self._draw(row)
        self._progress.step(step, total, row, self._words(step))

    def _draw(self, row: Json) -> None:
        if self._event_files is None:
            return
        self._event_files.epoch(row)
        if self._pictures:
            with TemporaryDirectory() as folder:
                for path in self._pictures(Path(folder)):
                    self._event_files.picture(f"masks/{path.stem}", path.read_bytes(), row)

    def _words(self, step: int) -> str:
        """Beside the bar: the epoch and the speed of now, and what the last epoch brought."""
        place = self._place(step)
        said = [f"epoch {place['epoch']}/{place['epochs']}", *([f"{self._speed:.0f} images/s"] if self._speed else [])]
        for row in self._fitting.history[-1:]:
            said.append(f"held-out {heldout_of(row)[1]:.2f} %")
            said += [f"{name} {value:.3f}" for name, value in row["losses"].items()]
        return "  ".join(said)

    def _place(self, step: int) -> Json:
        epochs = math.ceil(self._fitting.total_steps / self._fitting.steps_per_epoch)
        return {"epoch": min(step // self._fitting.steps_per_epoch + 1, epochs), "epochs": epochs}

    def _write_now(self, step: int) -> None:
        (began, first), total = self._began, self._fitting.total_steps
        passed = time.monotonic() - began
        now = {
            "stage": self._progress.stage,
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "step": step,
            "steps": total,
            **self._place(step),
            "images_per_s": round(self._speed, 1) or None,
            "left_s": round((total - step) * passed / (step - first), 1) if step > first else None,
        }
        _replace(self._folder / NOW, json.dumps(now) + "\n")

    def _write_epochs(self) -> None:
        _replace(self._folder / EPOCHS, "".join(json.dumps(row) + "\n" for row in self._fitting.history))


def forget_progress(folder: Path) -> None:
    """Remove what `Live` left in a stage's folder."""
    for name in (EPOCHS, NOW):
        (folder / name).unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    """Whole or not at all for whoever reads; a power cut or a full disk costs the display, never the training."""
    temporary = path.with_name(f".{path.name}.new")
    with suppress(OSError):
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
