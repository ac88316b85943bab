"""One network and its test set in, one checked bundle out: the worker of the stage `export`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afpkd.record import Json, UserError
from export.bundle import Evaluation, Golden, ModelFile, golden_indices, preprocess, write_bundle
from export.cost import macs_of
from export.inference import LogitsOnly, logits_only
from export.to_onnx import onnx_from_model
from export.verify import (
    Forward,
    Logits,
    compare,
    golden_tolerances,
    onnx_forward,
    require_within,
    tied_images,
    top1,
)

_BATCH_SIZE = 250

Exporter = Callable[[nn.Module, Tensor, Path, int], ModelFile]
"""(model, example, folder, opset) -> the file it wrote there."""


def _fp32(model: nn.Module, example: Tensor, folder: Path, opset: int) -> ModelFile:
    path = folder / "fp32.onnx"
    onnx_from_model(model, example, path, opset=opset)
    return ModelFile(path, "fp32", opset)


EXPORTERS: dict[str, Exporter] = {"fp32": _fp32}


def build_bundle(
    model: nn.Module,
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
) -> Json:
    """Export `model`, check each file against it, and write the bundle to `out`; give the manifest.

    images, labels: the whole test set, uint8 N, C, H, W and N. Each file must meet its golden tolerances and give every
    test image the class torch gives it; images that a tie alone decides are listed under `ties`. UserError otherwise:
    nothing is written then, and a bundle that stands at `out` stays.
    """
    rule = {"layout": "NCHW", "scale": 1 / 255, "mean": list(mean), "std": list(std)}
    network, name = logits_only(model), f"{role} ({arch})"
    reference = _predict(_torch_forward(network), images, rule)
    _check_inputs(name, reference, labels, label_names, precisions)
    chosen = golden_indices(images)
    tolerances = {precision: golden_tolerances(precision, reference[chosen]) for precision in precisions}
    example = torch.from_numpy(preprocess(images[:1], {"preprocessing": rule}))
    cost = macs_of(model, example)
    with tempfile.TemporaryDirectory() as scratch:
        files, verification = [], {}
        for precision in precisions:
            file = EXPORTERS[precision](model, example, Path(scratch), opset)
            logits = _predict(onnx_forward(file.path), images, rule)
            what = f"{name}, {file.path.name}"
            require_within(compare(reference[chosen], logits[chosen]), tolerances[precision], what)
            verification[precision] = _verification(reference, logits, labels, what)
            files.append(file)
        facts = {
            "role": role,
            "arch": arch,
            "num_params": cost.pop("num_params"),
            "macs": cost,
            "preprocessing": rule,
            "verification": verification,
            "torch_top1": top1(reference, labels),
            "lineage": lineage,
        }
        return write_bundle(
            out,
            facts=facts,
            files=files,
            golden=Golden(images[chosen], reference[chosen], tolerances),
            evaluation=Evaluation(images, labels.astype(np.int64), label_names),
        )


def _verification(reference: Logits, logits: Logits, labels: NDArray[np.int64], what: str) -> Json:
    ties = tied_images(reference, logits, what)
    return {**compare(reference, logits), "ties": ties, "top1": top1(logits, labels), "status": "ok"}


def _check_inputs(
    name: str, reference: Logits, labels: NDArray[np.int64], label_names: Sequence[str], precisions: Sequence[str]
) -> None:
    assert len(reference) == len(labels), "one label an image"
    unknown = [precision for precision in precisions if precision not in EXPORTERS]
    if unknown:
        raise UserError(f"{name}: precision {unknown[0]!r} cannot be exported: known are {', '.join(EXPORTERS)}")
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
