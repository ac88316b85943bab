"""TensorBoard's event files: curves of each loss term, the held-out score, learning rate and speed, and pictures.

Written by the package `tensorboard` alone (the extra of this name). Where they are wanted is told by the environment,
never by a recipe: what a run is does not depend on who looks at it.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from afpkd.errors import UserError, install
from afpkd.record import Json
from pipeline.progress import heldout_of

VARIABLE = "AFPKD_TENSORBOARD"
"""Environment variable: with any value, event files are written. `afpkd run --tensorboard` sets it."""

FOLDER = "tensorboard"
"""Of a run; a folder a stage in it: `tensorboard --logdir runs/<recipe>/tensorboard`."""


def require_tensorboard() -> None:
    """UserError where the package is missing."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "E_PACKAGE",
            f"event files: tensorboard is not installed: {install('tensorboard')} in this program's folder",
        )


def event_files_of(run: Path, stage: str) -> EventFiles | None:
    """The event files of a stage, begun anew; None where nobody asked for them. UserError without the package."""
    if not os.environ.get(VARIABLE):
        return None
    require_tensorboard()
    return EventFiles(run / FOLDER / stage)


class EventFiles:
    """One event file in a folder of its own; what lay there of an earlier training goes, so that no step is twice."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{os.uname().nodename}.{os.getpid()}"
        self._write(file_version="brain.Event:2")

    def epoch(self, row: Json) -> None:
        """Add a finished epoch."""
        name, score = heldout_of(row)
        scalars = {
            **{f"loss/{loss}": value for loss, value in row["losses"].items()},
            **{f"gradient_norm/{loss}": value for loss, value in row["gradient_norms"].items()},
            f"heldout/{name}": score,
            "learning_rate": row["lr"],
            "images_per_s": row["images_per_s"],
        }
        self._add(row, [{"tag": tag, "simple_value": value} for tag, value in scalars.items()])

    def picture(self, tag: str, png: bytes, row: Json) -> None:
        """Add a picture at the end of an epoch."""
        width, height = struct.unpack(">II", png[16:24])  # of the header, which every PNG begins with
        image = {"encoded_image_string": png, "width": width, "height": height, "colorspace": 3}
        self._add(row, [{"tag": tag, "image": image}])

    def _add(self, row: Json, values: list[Json]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step=row["step"], summary=Summary(value=[Summary.Value(**value) for value in values]))

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._path.open("ab") as file:  # closed at once: what is written can be seen at once
            RecordWriter(file).write(Event(wall_time=time.time(), **event).SerializeToString())
