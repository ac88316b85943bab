"""Does an exported file compute what the network computes? Numbers, tolerances, accuracy. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from afpkd.record import Json, UserError

Logits = NDArray[np.float32]
Forward = Callable[[NDArray[np.float32]], Logits]
"""Preprocessed images, float32 N, C, H, W -> logits N, K."""


class Rule(NamedTuple):
    """How far a precision may stray from float32 torch on the golden inputs."""

    max_abs: float
    """Largest absolute difference, as a part of the largest |logit| of the reference."""
    cosine: float
    """Smallest cosine over the images."""
    argmax_agreement: float
    """Percent of the images."""


RULES = {"fp32": Rule(max_abs=1e-3, cosine=0.99999, argmax_agreement=100.0)}

_TIE = 1e-5
"""Two logits this close, as a part of the image's largest |logit|, are a tie: 84 times float32's rounding step."""


def compare(reference: Logits, candidate: Logits) -> Json:
    """Compare logits N, K in float64: the worst image counts, the agreement excepted.

    max_abs_error: largest |difference|. max_rel_error: largest over the images of (largest |difference|) / (largest
    |reference|), so that a logit near 0 does not blow it up. argmax_agreement: percent. cosine: smallest over the
    images, 0 where either is all zeros. UserError on other shapes and on NaN or infinity.
    """
    if reference.shape != candidate.shape:
        raise UserError(
            f"logits of shape {candidate.shape}, expected {reference.shape}: the file is of another network"
        )
    want, got = reference.astype(np.float64), candidate.astype(np.float64)
    for name, logits in (("network", want), ("file", got)):
        if not np.isfinite(logits).all():
            raise UserError(f"the {name}'s logits hold NaN or infinity: check the weights and their training")
    error = np.abs(got - want).max(axis=1)
    return {
        "max_abs_error": float(error.max()),
        "max_rel_error": float((error / np.maximum(np.abs(want).max(axis=1), np.finfo(np.float32).tiny)).max()),
        "argmax_agreement": 100 * int((want.argmax(axis=1) == got.argmax(axis=1)).sum()) / len(want),
        "cosine": float(_cosines(want, got).min()),
        "num": len(want),
    }


def golden_tolerances(precision: str, reference: Logits) -> Json:
    """Tolerances for one precision on these golden logits: {"max_abs", "cosine", "argmax_agreement"}."""
    return {**RULES[precision]._asdict(), "max_abs": RULES[precision].max_abs * float(np.abs(reference).max())}


def require_within(comparison: Json, tolerances: Json, what: str) -> None:
    """UserError, naming `what` and each number that fails, where a comparison does not meet its tolerances."""
    failures = [
        f"{name} {comparison[name]:.8g} (at least {tolerances[name]:.8g})"
        for name in ("cosine", "argmax_agreement")
        if comparison[name] < tolerances[name]
    ]
    if comparison["max_abs_error"] > tolerances["max_abs"]:
        failures.append(f"max_abs_error {comparison['max_abs_error']:.8g} (at most {tolerances['max_abs']:.8g})")
    if failures:
        raise UserError(f"{what}: does not compute what torch computes: {', '.join(failures)}: it was not written")


def tied_images(reference: Logits, candidate: Logits, what: str) -> list[int]:
    """Give the images whose argmax differs by a tie alone; UserError, naming the first, where it truly differs.

    A tie: the reference itself holds the two classes equal to 1e-5 of its largest |logit|, so rounding decides.
    """
    want, got = reference.argmax(axis=1), candidate.argmax(axis=1)
    differing = np.flatnonzero(want != got)
    margins = reference[differing, want[differing]] - reference[differing, got[differing]]
    true = differing[margins > _TIE * np.abs(reference[differing]).max(axis=1, initial=0.0)]
    if len(true):
        first = int(true[0])
        raise UserError(
            f"{what}: {len(true)} of {len(reference)} images get another class than in torch, "
            f"the first is number {first} (class {want[first]} became {got[first]}): it was not written"
        )
    return [int(image) for image in differing]


def run_onnx(path: Path, images: NDArray[np.float32], batch_size: int = 250) -> Logits:
    """Logits N, K of preprocessed `images` (float32 N, C, H, W) in ONNX Runtime on the CPU."""
    forward = onnx_forward(path)
    return np.concatenate([forward(images[i : i + batch_size]) for i in range(0, len(images), batch_size)])


def onnx_forward(path: Path) -> Forward:
    """Open a file in ONNX Runtime on the CPU; UserError where it cannot be loaded."""
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        line = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot load it ({line}): export it again"
        ) from None
    name = session.get_inputs()[0].name

    def forward(images: NDArray[np.float32]) -> Logits:
        logits: Logits = session.run(None, {name: images})[0]
        return logits

    return forward


def top1(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Top-1 accuracy in percent, 0-100, of logits N, K against labels N."""
    assert len(logits) == len(labels), "one label an image"
    return 100 * int((logits.argmax(axis=1) == labels).sum()) / len(labels)


def _cosines(want: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
    cosines: NDArray[np.float64] = (want * got).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return cosines
