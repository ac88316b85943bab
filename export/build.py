"""One classifier and its test set in, one checked bundle out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from afpkd.errors import UserError
from afpkd.record import Json
from export.bundle import Evaluation, golden_indices
from export.files import Planned
from export.making import Order, Source, make_bundle, source_from_model
from export.passes import outputs_of
from export.verify import (
    Logits,
    compare,
    file_tolerances,
    golden_tolerances,
    onnx_forward,
    require_within,
    status_of,
    tied_images,
    top1,
)


def build_bundle(
    network: nn.Module | Source,
    order: Order,
    *,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
) -> Json:
    """Export a network, check each file against it, and write the bundle; give the manifest.

    images, labels: the whole test set, uint8 N, C, H, W and N. A float32 file must meet its golden tolerances and give
    every test image the class torch gives it (images that a tie alone decides are listed under `ties`): UserError
    otherwise, nothing is written then, and a bundle that stands at `order.out` stays.
    """
    source = network if isinstance(network, Source) else source_from_model(network, images.shape[1:])
    reference = outputs_of(source.forward, images, order.rule)
    assert len(reference) == len(labels), "one label an image"
    order.require_sense(reference)
    if reference.shape[1] != len(label_names):
        raise UserError(
            "E_DATA_CLASSES", f"{order.name}: {reference.shape[1]} classes, but the data set names {len(label_names)}"
        )
    checker = ClassifierChecker(order.name, images, labels, order.rule, reference, order.max_drop)
    return make_bundle(
        order,
        source,
        checker,
        rule=order.rule,
        facts={"torch_top1": checker.torch_top1},
        evaluation=Evaluation(images, labels.astype(np.int64), label_names),
    )


class ClassifierChecker:
    """Holds each file against float32 torch on the golden images and on the whole test set."""

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        rule: Json,
        reference: Logits,
        max_drop: float,
    ) -> None:
        self._name, self._images, self._labels, self._rule = name, images, labels, rule
        self.reference, self._max_drop = reference, max_drop
        self.chosen = golden_indices(images)
        self.torch_top1 = top1(reference, labels)

    def tolerances(self, precisions: Sequence[str]) -> dict[str, Json]:
        """Golden tolerances by precision."""
        return {precision: golden_tolerances(precision, self.reference[self.chosen]) for precision in precisions}

    def check(self, file: Planned, path: Path, overflow: str | None) -> Json:
        """Give what the manifest says of a file, and the tolerances it has on a device; UserError where fp32 strays."""
        what, reference = f"{self._name}, {file.name}", self.reference
        logits = outputs_of(onnx_forward(path, as_written=file.as_written), self._images, self._rule)
        golden = compare(reference[self.chosen], logits[self.chosen])
        tolerances = golden_tolerances(file.precision, reference[self.chosen])
        ties = []
        if file.precision == "fp32":
            require_within(golden, tolerances, what)
            ties = tied_images(reference, logits, what)
        else:
            tolerances = file_tolerances(tolerances, golden)
        found = compare(reference, logits)
        accuracy = top1(np.nan_to_num(logits, nan=-np.inf), self._labels)
        fault = overflow if file.half else None
        judged = status_of(found, accuracy, self.torch_top1, self._max_drop, file.precision, fault)
        if file.precision == "fp32":  # held to the image above: what ties decide is no loss
            judged |= {"status": "ok", "reason": None}
        return {**found, "ties": ties, **judged, "tolerances": tolerances}
