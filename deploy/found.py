"""What a detector found on a device, as COCO's average precision: the host keeps the boxes that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.data.coco import CocoSplit, Scene
from afpkd.record import Json
from afpkd.tasks.coco_metrics import average_precision


class _OnImage(NamedTuple):
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


def average_precision_of(arrays: Mapping[str, NDArray[Any]], truth_file: Path) -> dict[str, float | None]:
    """Give AP, AP50, ... of the arrays that `deploy.agent.objects.found_in_evaluation` made.

    truth_file: the bundle's `evaluation.labels`, a COCO document.
    """
    split, columns = read_truth(truth_file), ("found_boxes", "found_scores", "found_classes")
    chosen = [arrays["found_images"] == number for number in range(len(split.scenes))]
    return average_precision(split, [_OnImage(*(arrays[name][mine] for name in columns)) for mine in chosen])


def read_truth(path: Path) -> CocoSplit:
    """The scenes of a bundle's evaluation set, in its order."""
    document: Json = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[int, list[Json]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        rows[annotation["image_id"]].append(annotation)
    scenes = [_scene(image, rows[image["id"]]) for image in document["images"]]
    names = [category["name"] for category in document["categories"]]
    return CocoSplit(scenes, names, {}, "")


def _scene(image: Json, rows: list[Json]) -> Scene:
    singles, crowds = ([row for row in rows if row["iscrowd"] == crowd] for crowd in (0, 1))
    return Scene(
        image["id"],
        Path(image["file_name"]),
        (image["height"], image["width"]),
        _boxes(singles),
        np.array([row["category_id"] for row in singles], np.int64),
        np.array([row["area"] for row in singles], np.float64),
        _boxes(crowds),
        np.array([row["category_id"] for row in crowds], np.int64),
    )


def _boxes(rows: list[Json]) -> NDArray[np.float32]:
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)
