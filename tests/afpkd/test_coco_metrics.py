"""Average precision against pycocotools, on scenes with crowds and objects of every size."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from afpkd.data.coco import CocoSplit, Scene
from afpkd.record import Json
from afpkd.tasks.coco_metrics import METRICS, average_precision
from deploy.agent.detections import Found


def synthetic() -> tuple[CocoSplit, list[Found]]:
    """Fifty images of three classes with crowds, small, medium and large objects, and noisy detections of them."""
    rng = np.random.Generator(np.random.PCG64(11))
    scenes, found = [], []
    for number in range(50):
        corners = rng.uniform(0, 300, (rng.integers(0, 6), 2))
        boxes = np.concatenate([corners, corners + rng.choice([12, 60, 150], (len(corners), 1))], axis=1)
        crowd = np.array([[10.0, 10, 200, 120]]) if number % 5 == 0 else np.zeros((0, 4))
        labels = rng.integers(0, 3, len(boxes))
        scene = Scene(
            7 * number,
            Path(f"{number}.jpg"),
            (480, 480),
            boxes.astype(np.float32),
            labels,
            np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * 0.8,
            crowd.astype(np.float32),
            np.zeros(len(crowd), np.int64),
        )
        scenes.append(scene)
        near = boxes + rng.normal(0, 2, boxes.shape)
        wrong = rng.uniform(0, 100, (8, 2))
        guesses = np.concatenate([near, np.concatenate([wrong, wrong + 50], axis=1)]).astype(np.float32)
        classes = np.concatenate([labels, rng.integers(0, 3, 8)])
        scores = rng.random(len(guesses)) * np.where(np.arange(len(guesses)) < len(near), 1.0, 0.5)
        found.append(Found(guesses, scores.astype(np.float32), classes))
    return CocoSplit(scenes, ["a", "b", "c"], {}, ""), found


def test_average_precision_is_that_of_pycocotools() -> None:
    split, found = synthetic()
    ours = average_precision(split, found)
    theirs = COCO()
    rows: list[Json] = []
    annotations: list[Json] = []
    for scene, detected in zip(split.scenes, found, strict=True):
        for box, score, label in zip(*detected, strict=True):
            rows.append({"image_id": scene.id, "category_id": int(label), "bbox": xywh(box), "score": float(score)})
        singles = zip(scene.boxes, scene.labels, scene.areas, strict=True)
        crowds = ((box, 0, float(np.prod(box[2:] - box[:2]))) for box in scene.crowds)
        for crowd, group in ((0, singles), (1, crowds)):
            for box, label, area in group:
                row = {"id": len(annotations) + 1, "image_id": scene.id, "category_id": int(label), "iscrowd": crowd}
                annotations.append({**row, "bbox": xywh(box), "area": float(area)})
    with contextlib.redirect_stdout(io.StringIO()):
        theirs.dataset = {
            "info": {},
            "images": [{"id": scene.id, "height": 480, "width": 480} for scene in split.scenes],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in enumerate(split.names)],
        }
        theirs.createIndex()
        evaluation = COCOeval(theirs, theirs.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(ours) == list(METRICS)
    assert 10 < float(evaluation.stats[0]) * 100 < 90
    for name, value in zip(METRICS, evaluation.stats, strict=False):
        assert ours[name] == pytest.approx(100 * value, abs=1e-9), name


def test_perfect_detections_have_100_and_none_have_0() -> None:
    split, _ = synthetic()
    perfect = [Found(s.boxes, np.ones(len(s.boxes), np.float32), s.labels) for s in split.scenes]
    assert average_precision(split, perfect)["ap"] == pytest.approx(100)
    nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert average_precision(split, [nothing] * len(split.scenes))["ap"] == 0
    only_small = split._replace(
        scenes=[scene._replace(areas=np.full(len(scene.areas), 50.0)) for scene in split.scenes]
    )
    found = average_precision(only_small, perfect)
    assert found["ap_small"] == pytest.approx(100)
    assert found["ap_large"] is None


def xywh(box: Any) -> list[float]:
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]
