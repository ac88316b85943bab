"""One detector and its test scenes in, one checked bundle out: the same files as a classifier's, held to COCO's AP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from afpkd.data.coco import CocoSplit
from afpkd.errors import UserError
from afpkd.record import Json
from afpkd.tasks.coco_metrics import Detected, average_precision, coco_document
from export.bundle import Evaluation, golden_indices
from export.files import Planned
from export.making import Order, make_bundle, source_from_model
from export.passes import outputs_of
from export.verify import Logits, compare, file_tolerances, golden_tolerances, onnx_forward, require_within, status_of

NUM_GOLDEN = 8
"""Golden scenes: a raw output of COCO's size takes 7 MB each."""

MOST_BOX_ERROR = {"fp32": 0.1, "fp16": 2.0, "int8": 16.0}
"""Pixels by which a device may move a box, beyond twice what the file itself does here; fp32 files are held to it."""

PREDICTIONS = (
    "head.classification_head.cls_logits",
    "head.regression_head.bbox_reg",
    "head.regression_head.bbox_ctrness",
)
"""FCOS's last layers stay float in int8: 8 bits would make ties of scores and steps of box edges."""


class Reading(NamedTuple):
    """How raw output is read: the functions that devices run (`deploy.agent.detections`), which lies above us."""

    find: Callable[[NDArray[np.float32], tuple[int, int], float], Detected]
    """(raw output of an image, its (H, W), its scale on the canvas) -> its detections."""
    agreement: Callable[[NDArray[np.float32], NDArray[np.float32]], float]
    """(expected, found), both N, A, 4 + K -> percent of the objects seen in both."""
    box_error: Callable[[NDArray[np.float32], NDArray[np.float32]], float]
    """The same -> the largest difference of box edges in pixels."""
    rule: Json
    """The manifest's `postprocessing`."""


class EvaluatedScenes(NamedTuple):
    """The whole test set: canvases uint8 N, 3, H, W, the scale of each image on its canvas, what is on it."""

    canvases: NDArray[np.uint8]
    scales: Sequence[float]
    split: CocoSplit


def build_detector_bundle(model: nn.Module, order: Order, *, test: EvaluatedScenes, reading: Reading) -> Json:
    """Export a detector, check each file against it, and write the bundle; give the manifest.

    A float32 file must meet its golden tolerances: UserError otherwise, nothing is written then. `order.max_drop` is in
    points of AP.
    """
    order = replace(order, int8=order.int8._replace(exclude=(*order.int8.exclude, *PREDICTIONS)))
    rule = {**order.rule, "fit": "letterbox"}
    source = source_from_model(model, test.canvases.shape[1:])
    reference = outputs_of(source.forward, test.canvases, rule, on_disk=True)
    order.require_sense(reference)
    checker = DetectorChecker(order.name, test, rule, reference, reading, order.max_drop)
    return make_bundle(
        order,
        source,
        checker,
        rule=rule,
        facts={"postprocessing": reading.rule, "torch_ap": checker.torch_ap},
        evaluation=Evaluation(test.canvases, _truth(test), test.split.names),
    )


class DetectorChecker:
    """Holds each file against float32 torch on the golden scenes and on the whole test set."""

    def __init__(
        self, name: str, test: EvaluatedScenes, rule: Json, reference: Logits, reading: Reading, max_drop: float
    ) -> None:
        self._name, self._test, self._rule, self.reference = name, test, rule, reference
        self._reading, self._max_drop = reading, max_drop
        self.chosen = golden_indices(test.canvases, NUM_GOLDEN)
        self.torch_ap = self._ap(reference)

    def tolerances(self, precisions: Sequence[str]) -> dict[str, Json]:
        """Golden tolerances by precision: those of its scores, and of its boxes in pixels."""
        scores = self.reference[self.chosen][..., 4:]
        return {name: {**golden_tolerances(name, scores), "max_box": MOST_BOX_ERROR[name]} for name in precisions}

    def check(self, file: Planned, path: Path, overflow: str | None) -> Json:
        """Give what the manifest says of a file, and the tolerances it has on a device; UserError where fp32 strays."""
        what, reference = f"{self._name}, {file.name}", self.reference
        forward = onnx_forward(path, as_written=file.as_written)
        raw = outputs_of(forward, self._test.canvases, self._rule, on_disk=True)
        golden, found = self._compared(reference[self.chosen], raw[self.chosen]), self._compared(reference, raw)
        tolerances = self.tolerances([file.precision])[file.precision]
        if file.precision == "fp32":
            require_within(golden, tolerances, what)
            if golden["max_box_error"] > tolerances["max_box"]:
                raise UserError(
                    "E_EXPORT_DIFFERS",
                    f"{what}: moves boxes by {golden['max_box_error']:.3g} pixels: it was not written",
                )
        elif not golden["num_not_finite"]:
            most = max(tolerances["max_box"], 2 * golden["max_box_error"])
            tolerances = {**file_tolerances(tolerances, golden), "max_box": most}
        scores = self._ap(raw)
        reached, wanted = (values["ap"] or 0.0 for values in (scores, self.torch_ap))
        fault = overflow if file.half else None
        judged = status_of(found, reached, wanted, self._max_drop, file.precision, fault, metric="ap")
        return {**found, "ties": [], **judged, **scores, "tolerances": tolerances}

    def _compared(self, reference: Logits, raw: Logits) -> Json:
        found = compare(reference, raw)
        return {
            **found,
            "argmax_agreement": self._reading.agreement(reference, raw),
            "max_box_error": None if found["num_not_finite"] else self._reading.box_error(reference, raw),
        }

    def _ap(self, raw: Logits) -> dict[str, float | None]:
        scenes = zip(raw, self._test.split.scenes, self._test.scales, strict=True)
        found = [self._reading.find(_finite(image), scene.size, scale) for image, scene, scale in scenes]
        return average_precision(self._test.split, found)


def _finite(raw: Logits) -> Logits:
    """What is no number finds nothing."""
    return np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0)


def _truth(test: EvaluatedScenes) -> Json:
    """What is on the test scenes, as a COCO document that also says the scale of each image on its canvas."""
    document = coco_document(test.split)
    rows = zip(document["images"], test.scales, strict=True)
    return {**document, "images": [{**row, "scale": scale} for row, scale in rows]}
