"""COCO's average precision, by faster-coco-eval: the numbers of pycocotools (a test compares). numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from afpkd.data.coco import CocoSplit, Scene
from afpkd.record import Json

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Percent, 0-100: over IoU 0.5 to 0.95, at 0.5, at 0.75; and of objects below 32 x 32, below 96 x 96, above."""

_NOWHERE = {"bbox": [-1.0, -1.0, 0.0, 0.0], "score": 0.0}
"""Finds nothing: the evaluation wants one row at least."""


class Detected(Protocol):
    """Detections of one image. boxes: M, 4 (left, top, right, bottom) in its own pixels; scores, classes: M."""

    @property
    def boxes(self) -> NDArray[np.float32]:
        """M, 4."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """M, in 0..1."""

    @property
    def classes(self) -> NDArray[np.int64]:
        """M, numbers in the split's list of names."""


def average_precision(split: CocoSplit, found: Sequence[Detected]) -> dict[str, float | None]:
    """`METRICS` of detections, one an image of the split; None where the split has no object of that size."""
    assert len(found) == len(split.scenes), "detections of every image"
    from faster_coco_eval import COCO, COCOeval_faster

    truth = coco_document(split)
    rows = [row for scene, detected in zip(split.scenes, found, strict=True) for row in _result_rows(scene, detected)]
    rows = rows or [{"image_id": split.scenes[0].id, "category_id": 0, **_NOWHERE}]
    reference = COCO(truth)
    evaluation = COCOeval_faster(reference, reference.loadRes(rows), "bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = dict(zip(METRICS, map(float, evaluation.stats), strict=False))
    return {name: None if value < 0 else 100 * value for name, value in values.items()}


def coco_document(split: CocoSplit) -> Json:
    """A split as a COCO document again: as cleaned, its classes by their numbers."""
    images = [
        {"id": scene.id, "height": scene.size[0], "width": scene.size[1], "file_name": scene.path.name}
        for scene in split.scenes
    ]
    annotations: list[Json] = []
    for scene in split.scenes:
        singles = zip(scene.boxes, scene.labels, scene.areas, [0] * len(scene.labels), strict=True)
        crowd_areas = [float(box) for box in np.prod(scene.crowds[:, 2:] - scene.crowds[:, :2], axis=1)]
        crowds = zip(scene.crowds, scene.crowd_labels, crowd_areas, [1] * len(scene.crowd_labels), strict=True)
        for box, label, area, crowd in (*singles, *crowds):
            row = {"id": len(annotations) + 1, "image_id": scene.id, "category_id": int(label), "iscrowd": crowd}
            annotations.append({**row, "bbox": _xywh(box), "area": float(area)})
    categories = [{"id": number, "name": name} for number, name in enumerate(split.names)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _result_rows(scene: Scene, detected: Detected) -> list[Json]:
    return [
        {"image_id": scene.id, "category_id": int(label), "bbox": _xywh(box), "score": float(score)}
        for box, score, label in zip(detected.boxes, detected.scores, detected.classes, strict=True)
    ]


def _xywh(box: NDArray[np.float32]) -> list[float]:
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]


def _silent(*_: Any) -> None:
    """It prints a table."""
