"""Does an exported file compute what the network computes? Numbers, tolerances, accuracy. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from afpkd.errors import UserError
from afpkd.names import in_words
from afpkd.record import Json
from export.bounded import answers

if TYPE_CHECKING:
    from onnx import ModelProto

Logits = NDArray[np.float32]
Forward = Callable[[NDArray[np.float32]], Logits]
"""Preprocessed images, float32 N, C, H, W -> logits N, K."""


class Rule(NamedTuple):
    """How far a precision may stray from float32 torch on the golden inputs, whatever the network."""

    max_abs: float
    """Largest absolute difference, as a part of the largest |logit| of the reference."""
    cosine: float
    """Smallest cosine over the images."""
    argmax_agreement: float
    """Percent of the images."""


RULES = {
    "fp32": Rule(max_abs=1e-3, cosine=0.99999, argmax_agreement=100.0),
    "fp16": Rule(max_abs=1e-2, cosine=0.999, argmax_agreement=96.0),  # 2 of 64 golden images may be near ties
    "int8": Rule(max_abs=5e-2, cosine=0.99, argmax_agreement=96.0),
}
_ALLOWANCE = 2.0
"""A device may stray twice as far as the file itself strays here: another order of sums, rounding once more or less."""
_FLIPS = 4.0
"""Percent of the golden images that may change class beyond those that the file itself changes: 2 of 64."""

_TIE = 1e-5
"""Two logits this close, as a part of the image's largest |logit|, are a tie: 84 times float32's rounding step."""


def compare(reference: Logits, candidate: Logits) -> Json:
    """Compare logits N, K in float64: the worst image counts, the agreement and the SQNR excepted.

    Of a detector's raw output, N, A, 4 + K, its scores are compared (`export.detector` looks at its boxes).

    max_abs_error: largest |difference|. max_rel_error: largest over the images of (largest |difference|) / (largest
    |reference|), so that a logit near 0 does not blow it up. sqnr_db: 10 log10(sum reference^2 / sum difference^2),
    None where there is no difference. argmax_agreement: percent. cosine: smallest over the images, 0 where either is
    all zeros. Where the candidate holds NaN or infinity all but the agreement are None and `num_not_finite` counts
    such images. UserError on other shapes and on a reference that is not finite.
    """
    if reference.shape != candidate.shape:
        raise UserError(
            "E_EXPORT_DIFFERS",
            f"logits of shape {candidate.shape}, expected {reference.shape}: the file is of another network",
        )
    step = len(reference) if reference.ndim == 2 else _SCENES
    parts = [
        _Part.of(reference[start : start + step], candidate[start : start + step])
        for start in range(0, len(reference), step)
    ]
    num_not_finite = sum(part.num_not_finite for part in parts)
    return {
        **(dict.fromkeys(_ERRORS) if num_not_finite else _errors(parts)),
        "argmax_agreement": 100 * sum(part.num_same for part in parts) / len(reference),
        "num_not_finite": num_not_finite,
        "num": len(reference),
    }


class _Part(NamedTuple):
    """What some of the images add to a comparison."""

    num_same: int
    num_not_finite: int
    max_abs: float
    max_rel: float
    noise: float
    power: float
    cosine: float

    @classmethod
    def of(cls, reference: Logits, candidate: Logits) -> _Part:
        want, got = (_answers(outputs).astype(np.float64) for outputs in (reference, candidate))
        if not np.isfinite(want).all():
            raise UserError(
                "E_WEIGHTS_NAN", "the network's logits hold NaN or infinity: check the weights and their training"
            )
        finite = np.isfinite(candidate).reshape(len(candidate), -1).all(axis=1)  # boxes, too
        num_same = int((finite & (want.argmax(axis=1) == got.argmax(axis=1))).sum())
        if not finite.all():
            return cls(num_same, int((~finite).sum()), *[np.nan] * 5)
        error, largest = np.abs(got - want).max(axis=1), np.maximum(np.abs(want).max(axis=1), _TINY)
        sums = float(((got - want) ** 2).sum()), float((want**2).sum())
        return cls(
            num_same, 0, float(error.max()), float((error / largest).max()), *sums, float(_cosines(want, got).min())
        )


def _answers(outputs: Logits) -> Logits:
    """Logits as they are; of a detector's raw output the scores, flat."""
    return outputs if outputs.ndim == 2 else outputs[..., 4:].reshape(len(outputs), -1)


_ERRORS = ("max_abs_error", "max_rel_error", "sqnr_db", "cosine")


_SCENES = 16
"""Compared at a time in float64, where an image's raw output may have megabytes."""
_TINY = np.finfo(np.float32).tiny


def _errors(parts: Sequence[_Part]) -> Json:
    noise, power = sum(part.noise for part in parts), sum(part.power for part in parts)
    return {
        "max_abs_error": max(part.max_abs for part in parts),
        "max_rel_error": max(part.max_rel for part in parts),
        "sqnr_db": 10 * float(np.log10(power / noise)) if noise and power else None,
        "cosine": min(part.cosine for part in parts),
    }


def golden_tolerances(precision: str, reference: Logits) -> Json:
    """Tolerances for one precision on these golden logits: {"max_abs", "cosine", "argmax_agreement"}."""
    return {**RULES[precision]._asdict(), "max_abs": RULES[precision].max_abs * float(np.abs(reference).max())}


def file_tolerances(tolerances: Json, measured: Json) -> Json:
    """Tolerances of one file: those of its precision, widened to what the file itself does to the golden logits.

    A device must compute what the *file* says; whether the file is any good is told by its accuracy. tolerances:
    `golden_tolerances`; measured: `compare` of the golden images here. A file that gives no finite numbers keeps those
    of its precision, which it cannot meet.
    """
    if measured["num_not_finite"]:
        return tolerances
    return {
        "max_abs": max(tolerances["max_abs"], _ALLOWANCE * measured["max_abs_error"]),
        "cosine": min(tolerances["cosine"], 1 - _ALLOWANCE * (1 - measured["cosine"])),
        "argmax_agreement": min(tolerances["argmax_agreement"], measured["argmax_agreement"] - _FLIPS),
    }


def status_of(
    comparison: Json,
    accuracy: float,
    torch_top1: float,
    max_drop: float,
    name: str,
    fault: str | None = None,
    *,
    metric: str = "top1",
) -> Json:
    """Judge a file by its budget: {"top1", "drop", "max_drop", "status": "ok" | "over budget", "reason"}; percent.

    metric: what the accuracy is, `ap` of a detector. fault: what is wrong with the file whatever its accuracy here.
    """
    drop, reason = torch_top1 - accuracy, None
    if fault:
        reason = f"{name}: {fault}"
    elif comparison["num_not_finite"]:
        reason = f"{name} gives NaN or infinity for {comparison['num_not_finite']} of {comparison['num']} images"
    elif drop > max_drop:
        lost = f"loses {drop:.2f} points of {in_words(metric)} against float32 ({torch_top1:.2f} %)"
        reason = f"{name} {lost}, more than {max_drop:g}"
    status = "ok" if reason is None else "over budget"
    return {metric: accuracy, "drop": drop, "max_drop": max_drop, "status": status, "reason": reason}


def require_within(comparison: Json, tolerances: Json, what: str) -> None:
    """UserError, naming `what` and each number that fails, where a comparison does not meet its tolerances."""
    if comparison["num_not_finite"]:
        raise UserError("E_EXPORT_DIFFERS", f"{what}: its logits hold NaN or infinity: it was not written")
    failures = [
        f"{name} {comparison[name]:.8g} (at least {tolerances[name]:.8g})"
        for name in ("cosine", "argmax_agreement")
        if comparison[name] < tolerances[name]
    ]
    if comparison["max_abs_error"] > tolerances["max_abs"]:
        failures.append(f"max_abs_error {comparison['max_abs_error']:.8g} (at most {tolerances['max_abs']:.8g})")
    if failures:
        raise UserError(
            "E_EXPORT_DIFFERS",
            f"{what}: does not compute what torch computes: {', '.join(failures)}: it was not written",
        )


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
            "E_EXPORT_DIFFERS",
            f"{what}: {len(true)} of {len(reference)} images get another class than in torch, "
            f"the first is number {first} (class {want[first]} became {got[first]}): it was not written",
        )
    return [int(image) for image in differing]


def run_onnx(path: Path, images: NDArray[np.float32], batch_size: int = 250) -> Logits:
    """Logits N, K of preprocessed `images` (float32 N, C, H, W) in ONNX Runtime on the CPU."""
    forward = onnx_forward(path)
    return np.concatenate([forward(images[i : i + batch_size]) for i in range(0, len(images), batch_size)])


def onnx_forward(path: Path, *, as_written: bool = False) -> Forward:
    """Open a file in ONNX Runtime on the CPU; UserError where it cannot be loaded.

    Int8 products are summed exactly (`session.x64quantprecision`): by default, on x86 without VNNI, pairs of them
    saturate at 16 bits and a symmetric int8 network answers at random. A float16 file runs in float32 with float16
    weights on a processor without such kernels, x86 for one (`half.overflow` looks at the range). as_written: no graph
    optimisations, of which ONNX Runtime 1.32 loses the clipping of a float16 QuantizeLinear (22 dB become 12).
    """
    return _opened(str(path), str(path), as_written)


def graph_forward(proto: ModelProto, *, as_written: bool = False) -> Forward:
    """The same for a graph in memory (under 2 GB)."""
    return _opened(proto.SerializeToString(), proto.graph.name, as_written)


def _opened(source: str | bytes, what: str, as_written: bool) -> Forward:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3  # of a graph that is run as written it says at each node that a CPU knows no fp16
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        line = str(error).strip().splitlines()[0]
        raise UserError(
            "E_LOAD", f"{what}: onnxruntime {onnxruntime.__version__} cannot load it ({line}): export it again"
        ) from None
    name = session.get_inputs()[0].name

    def forward(images: NDArray[np.float32]) -> Logits:
        logits: Logits = answers(session, {name: images}, what)[0]
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
