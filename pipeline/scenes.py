"""A recipe's scenes: read, split, placed on its canvas; and the task that they set."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from afpkd.data.coco import CocoSplit, hold_out_scenes, read_canvases, read_coco, repeated, with_objects
from afpkd.data.coco_files import looked_at, with_repeats_told, with_tiny_told
from afpkd.errors import UserError
from afpkd.record import digest
from deploy.agent.detections import Rule, agreement, box_error, detections_of
from pipeline.recipe_detection import CocoData, Split
from pipeline.recipe_reader import found_path

if TYPE_CHECKING:
    from pathlib import Path

    from afpkd.tasks.detection import Detection
    from export.calibration import Calibration
    from export.detector import Reading

MOST_CALIBRATION_BYTES = 2 << 30
"""Of preprocessed scenes in memory."""


class Scenery(NamedTuple):
    """The splits of a recipe."""

    train: CocoSplit
    heldout: CocoSplit
    test: CocoSplit

    def sha256(self) -> str:
        """Hash the annotation files, which name and measure every image: which data a record speaks of."""
        return digest([split.sha256 for split in self])

    def told(self) -> list[str]:
        """A line a split."""
        return [f"{name}: {split.told()}" for name, split in self._asdict().items()]


def read_scenery(data: CocoData, recipe_file: Path, seed: int) -> Scenery:
    """Read the annotation files that a recipe names. UserError: missing, broken, or of other classes than train's.

    So are images that are missing or not of the size that is said: all of a split in one line.
    """
    whole = _read("train", data.train, recipe_file)
    test = _read("test", data.test, recipe_file, whole)
    if isinstance(data.heldout, int):
        rest, heldout = hold_out_scenes(whole, data.heldout, seed)
    else:
        rest, heldout = whole, _read("heldout", data.heldout, recipe_file, whole)
    for name, split in (("heldout", heldout), ("test", test)):  # now, not at the end of the teacher's training
        if not any(len(scene.boxes) for scene in split.scenes):
            raise UserError("E_DATA_COCO", f"{recipe_file.name}: data.{name}: no object is marked: it scores nothing")
    told = with_repeats_told(with_objects(rest), heldout, test)
    rest, heldout, test = (with_tiny_told(split, data.image_size, data.scales[1]) for split in told)
    return Scenery(repeated(rest, data.repeat), heldout, test)


def detection_task(data: CocoData) -> Detection:
    """The task, with the suppression that devices run."""
    from afpkd.tasks.detection import Detection

    return Detection(partial(detections_of, rule=rule_of(data)), range_divisor=data.range_divisor)


def rule_of(data: CocoData) -> Rule:
    """How the recipe's detectors are read."""
    return Rule(score=data.score, iou=data.iou, most=data.most)


def _read(key: str, split: Split, recipe_file: Path, train: CocoSplit | None = None) -> CocoSplit:
    annotations = found_path(split.annotations, recipe_file, f"data.{key}.annotations: no file")
    images = found_path(split.images, recipe_file, f"data.{key}.images: no folder", folder=True)
    return looked_at(read_coco(annotations, images, names=train.names if train else None), annotations)


def reading(data: CocoData) -> Reading:
    """How exported detectors are read: with the functions that devices run."""
    from export.detector import Reading

    return Reading(partial(detections_of, rule=rule_of(data)), agreement, box_error, rule_of(data)._asdict())


def scenes_for_calibration(train: CocoSplit, canvas: tuple[int, int], seed: int, most: int) -> Calibration:
    """Training scenes that calibrate int8, drawn with the recipe's seed; a small set gives fewer than is wished."""
    import numpy as np

    from export.calibration import NUM_IMAGES, Calibration

    distinct = list({scene.path: index for index, scene in enumerate(train.scenes)}.values())
    num = max(1, min(most, len(distinct), MOST_CALIBRATION_BYTES // (3 * canvas[0] * canvas[1] * 4)))
    drawn = np.random.Generator(np.random.PCG64(seed)).choice(len(distinct), size=num, replace=False)
    ids = sorted(distinct[index] for index in drawn)
    warning = f"calibrated on {num} images, fewer than {NUM_IMAGES}" if num < NUM_IMAGES else None
    read = read_canvases((train.scenes[index] for index in ids), canvas)
    canvases = np.stack([pixels for pixels, _ in read])
    return Calibration(canvases, ids, warning=warning)
