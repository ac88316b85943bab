"""The golden check: does this file, in this runtime, on this device, compute what the trained network computed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .detections import agreement, box_error

if TYPE_CHECKING:
    from numpy.typing import NDArray


def golden_check(
    logits: NDArray[np.float32], expected: NDArray[np.float32], tolerances: dict[str, float]
) -> dict[str, Any]:
    """Compare logits (N,K) with those the bundle brought; `ok` where all of `tolerances` hold.

    `max_abs`: largest absolute difference. `cosine`: the smallest over the images. `argmax_agreement`: percent.
    Values are None where an output is not finite or has another shape. Of a detector's raw output (N,A,4+K) the first
    two speak of its scores, the third of the objects found, and `max_box`, in pixels, of their boxes.
    """
    report: dict[str, Any] = {"ok": False, "num": len(expected), "tolerances": tolerances}
    if logits.shape != expected.shape or not np.isfinite(logits).all():
        return dict(report, max_abs=None, cosine=None, argmax_agreement=None)
    if logits.ndim == 3:
        report["max_box"] = box_error(expected, logits)
        same = agreement(expected, logits)
        expected, logits = (raw[..., 4:].reshape(len(raw), -1) for raw in (expected, logits))
    got, want = logits.astype(np.float64), expected.astype(np.float64)
    max_abs = float(np.abs(got - want).max())
    cosine = float(_cosines(got, want).min())
    if "max_box" not in report:
        same = float(100.0 * (got.argmax(axis=1) == want.argmax(axis=1)).mean())
    ok = (
        max_abs <= tolerances["max_abs"]
        and cosine >= tolerances["cosine"]
        and same >= tolerances["argmax_agreement"]
        and report.get("max_box", 0.0) <= tolerances.get("max_box", float("inf"))
    )
    return dict(report, ok=ok, max_abs=max_abs, cosine=cosine, argmax_agreement=same)


def _cosines(got: NDArray[np.float64], want: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine between the rows; 0 where a row is all zeros, which no trained network answers."""
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    cosines: NDArray[np.float64] = (got * want).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return cosines
