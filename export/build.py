"""One network and its test set in, one checked bundle out: the worker of the stage `export`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from afpkd.record import Json, UserError
from export.bundle import Evaluation, Golden, ModelFile, golden_indices, preprocess, write_bundle
from export.calibration import Calibration
from export.cost import macs_of
from export.files import PRECISIONS, GraphOf, Maker, Planned, planned_files
from export.inference import LogitsOnly, logits_only
from export.quantize import Int8
from export.to_onnx import graph_from_model, save_graph
from export.verify import (
    Forward,
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

_BATCH_SIZE = 250

BuildCheck = Callable[[Path, str], Json]
"""(file, precision) -> what NVIDIA's parser and builder say of it: `status`, `build_seconds`, `layer_types`, ..."""


class Source(NamedTuple):
    """A network as it is exported: what it computes, as which graph, at what cost."""

    forward: Forward
    """The reference that each file is held against: float32."""
    graph_of: GraphOf
    cost: Json
    """The keys of `cost.macs_of`."""


def source_from_model(model: nn.Module, image_shape: Sequence[int]) -> Source:
    """A torch network (it returns `Outputs`, or logits alone) that sees images of `image_shape` (C, H, W)."""
    example = torch.zeros(1, *image_shape)
    return Source(
        _torch_forward(logits_only(model)),
        lambda opset: graph_from_model(model, example, opset=opset),
        macs_of(model, example),
    )


def build_bundle(
    network: nn.Module | Source,
    *,
    role: str,
    arch: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    precisions: Sequence[str],
    opset: int,
    lineage: Json,
    out: Path,
    calibration: Calibration | None = None,
    int8: Int8 | None = None,
    legacy: bool = False,
    max_drop: float = 1.0,
    build_check: BuildCheck | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Json:
    """Export a network, check each file against it, and write the bundle to `out`; give the manifest.

    images, labels: the whole test set, uint8 N, C, H, W and N. A float32 file must meet its golden tolerances and give
    every test image the class torch gives it (images that a tie alone decides are listed under `ties`): UserError
    otherwise, nothing is written then, and a bundle that stands at `out` stays. A file of another precision that loses
    more than `max_drop` points of accuracy is listed as over budget, with the reason. calibration: for int8.
    """
    settings = int8 or Int8()
    rule = {"layout": "NCHW", "scale": 1 / 255, "mean": list(mean), "std": list(std)}
    source = network if isinstance(network, Source) else source_from_model(network, images.shape[1:])
    name = f"{role} ({arch})"
    reference = _predict(source.forward, images, rule)
    _check_inputs(name, reference, labels, label_names, precisions, calibration)
    planned = planned_files(precisions, opset, legacy=legacy, quantizer=settings.quantizer)
    quantizes = calibration is not None and "int8" in precisions
    inputs = preprocess(calibration.images, {"preprocessing": rule}) if quantizes and calibration else None
    maker = Maker(source.graph_of, opset, inputs, settings)
    checker = _Checker(name, images, labels, rule, reference, max_drop)
    fault = maker.overflow(checker.golden_inputs()) if set(precisions) != {"fp32"} else None
    with tempfile.TemporaryDirectory() as scratch:
        files, facts = _made(planned, maker, checker, Path(scratch), fault, build_check, say)
        return write_bundle(
            out,
            facts={
                "role": role,
                "arch": arch,
                "num_params": source.cost["num_params"],
                "macs": {key: value for key, value in source.cost.items() if key != "num_params"},
                "preprocessing": rule,
                "activations": maker.activations(images.shape[1:]),
                **facts,
                "sensitivity": maker.sensitivity(),
                "torch_top1": checker.torch_top1,
                "lineage": {**lineage, "calibration": _calibrated(calibration, settings) if quantizes else None},
            },
            files=files,
            golden=Golden(images[checker.chosen], reference[checker.chosen], checker.tolerances(precisions)),
            evaluation=Evaluation(images, labels.astype(np.int64), label_names),
        )


def _made(
    planned: Sequence[Planned],
    maker: Maker,
    checker: _Checker,
    folder: Path,
    fault: str | None,
    build_check: BuildCheck | None,
    say: Callable[[str], None],
) -> tuple[list[ModelFile], Json]:
    """Make and check each planned file in `folder`: the manifest's entries, and what it says of the files by name."""
    files: list[ModelFile] = []
    verification, builds = {}, {}
    for file in planned:
        path = folder / file.name
        save_graph(maker.graph(file), path, opset=file.opset)
        verification[file.name] = facts = checker.check(file, path, fault)
        say(f"{file.name}: top-1 {facts['top1']:.2f} %, {facts['status']}{_after(facts['reason'])}")
        builds[file.name] = _built(build_check, file, path)
        kept = {key: facts[key] for key in ("status", "reason")}
        entry = {**kept, "tolerances": facts.pop("tolerances")}
        files += [ModelFile(path, file.precision, file.opset, *run, entry) for run in file.runs]
    return files, {"verification": verification, "build_check": builds}


class _Checker:
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
        self._reference, self._max_drop = reference, max_drop
        self.chosen = golden_indices(images)
        self.torch_top1 = top1(reference, labels)

    def golden_inputs(self) -> NDArray[np.float32]:
        """The golden images, preprocessed."""
        return preprocess(self._images[self.chosen], {"preprocessing": self._rule})

    def tolerances(self, precisions: Sequence[str]) -> dict[str, Json]:
        """Golden tolerances by precision."""
        return {precision: golden_tolerances(precision, self._reference[self.chosen]) for precision in precisions}

    def check(self, file: Planned, path: Path, overflow: str | None) -> Json:
        """Give what the manifest says of a file, and the tolerances it has on a device; UserError where fp32 strays."""
        what, reference = f"{self._name}, {file.name}", self._reference
        logits = _predict(onnx_forward(path, as_written=file.as_written), self._images, self._rule)
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


def _built(build_check: BuildCheck | None, file: Planned, path: Path) -> Json:
    """What NVIDIA's builder says of a file that is for it; status None: not checked, and why."""
    if all(run.runtime == "onnxruntime" for run in file.runs):
        return {"status": None, "reason": "not checked: the file is not for TensorRT"}
    if build_check is None:
        return {"status": None, "reason": "not checked: no builder was given"}
    return build_check(path, file.precision)


def _calibrated(calibration: Calibration | None, settings: Int8) -> Json:
    assert calibration is not None, "int8 is calibrated"
    return {
        **calibration.facts(),
        "method": settings.method,
        "quantizer": settings.quantizer,
        "exclude": list(settings.exclude),
    }


def _after(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _check_inputs(
    name: str,
    reference: Logits,
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    precisions: Sequence[str],
    calibration: Calibration | None,
) -> None:
    assert len(reference) == len(labels), "one label an image"
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown:
        raise UserError(f"{name}: precision {unknown[0]!r} cannot be exported: known are {', '.join(PRECISIONS)}")
    if "int8" in precisions and calibration is None:
        raise UserError(f"{name}: int8 needs calibration images: give some of the training set")
    if reference.shape[1] != len(label_names):
        raise UserError(f"{name}: {reference.shape[1]} classes, but the data set names {len(label_names)}")
    if not np.isfinite(reference).all():
        raise UserError(f"{name}: its logits hold NaN or infinity: train it again")


def _predict(forward: Forward, images: NDArray[np.uint8], rule: Json) -> Logits:
    """Logits N, K of pixels, preprocessed a batch at a time: a large test set need not fit in memory as floats."""
    manifest = {"preprocessing": rule}
    batches = (images[i : i + _BATCH_SIZE] for i in range(0, len(images), _BATCH_SIZE))
    return np.concatenate([forward(preprocess(batch, manifest)) for batch in batches])


def _torch_forward(network: LogitsOnly) -> Forward:
    def forward(images: NDArray[np.float32]) -> Logits:
        with torch.inference_mode():
            logits: Logits = network(torch.from_numpy(images)).numpy()
        return logits

    return forward
