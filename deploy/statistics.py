"""Samples -> numbers that can be defended, and a verdict on whether they may be trusted. Pure functions.

No sample is ever removed: the slow calls are what an application feels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, theilslopes

Samples = NDArray[np.int64]
Verdict = Literal["VALID", "WARN", "INVALID"]

PERCENTILES = (50, 90, 99)

_DRIFT_WARN, _DRIFT_INVALID = 3.0, 10.0  # percent over the run (protocol 4.6)
_FOREIGN_SHARE = 0.1  # of the CPUs; an idle desktop takes a few percent
_DISTINCT_INPUTS = 64  # protocol 4.3


def latency_ms(samples_ns: Samples) -> dict[str, float | None]:
    """Give `p50`, `p90`, `p99` in ms; None where the samples are too few to bound that percentile."""
    return {f"p{percentile}": _bounded(samples_ns, percentile) for percentile in PERCENTILES}


def nearest_rank(samples: Samples, percentile: int) -> int:
    """Give the smallest sample that at least `percentile` percent of all do not exceed: always one that was seen.

    `percentile` in 1..100; ValueError without samples.
    """
    if len(samples) == 0:
        raise ValueError("a percentile of no samples: measure first")
    rank = -(-percentile * len(samples) // 100)  # the ceiling, in integers: 0.07 * 100 is not 7 in floats
    return int(np.partition(samples, rank - 1)[rank - 1])


@cache
def smallest_count(percentile: int, *, num_above: int = 1, confidence: float = 0.99) -> int:
    """Give the fewest samples that bound a percentile when `num_above` of them may lie above the bound.

    MLPerf's early-stopping rule (inference_rules, "early stopping"; tolerance d = 0): with h samples below and t above,
    the bound holds at the confidence c where I_p(h, t + 1) <= 1 - c, I being the regularised incomplete beta function,
    the chance that so few lie above by luck. Gives h + t for the smallest such h.
    """
    num_below = 1
    while beta.cdf(percentile / 100, num_below, num_above + 1) > 1 - confidence:
        num_below += 1
    return num_below + num_above


def throughput_ips(samples_ns: Samples, batch: int) -> float | None:
    """Give images per second of one stream: images done over the time spent in calls. None without samples."""
    return float(batch * len(samples_ns) * 1e9 / samples_ns.sum()) if len(samples_ns) else None


def drift_percent(samples_ns: Samples) -> float | None:
    """Give how far the latency moved from begin to end of the run, in percent of its median; None under 100 samples.

    Theil-Sen slope over the medians of up to 50 windows of at least 10 calls: neither a pause nor a spike bends it.
    """
    if len(samples_ns) < 100:
        return None
    windows = np.array_split(samples_ns, min(50, len(samples_ns) // 10))
    medians = np.array([np.median(window) for window in windows])
    slope = theilslopes(medians).slope
    return float(100 * slope * len(medians) / np.median(medians))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a verdict rests on. None: not known, and so not held against the row."""

    n: int
    min_count: int
    steady: bool | None
    drift_percent: float | None
    golden: Sequence[bool]
    """One entry a golden check that was made, in order: before the timing, after it."""
    foreign_cpus: float | None
    num_cpus: int
    num_inputs: int | None
    remarks: Sequence[str] = ()
    """What must be said beside the number, and is no fault of the measurement."""


def verdict(facts: Facts) -> tuple[Verdict, list[str]]:
    """Judge a row: INVALID where its number must not be used, WARN where it needs its reasons beside it."""
    invalid, warn = _invalid_reasons(facts), _warn_reasons(facts)
    if invalid:
        return "INVALID", invalid + warn
    return ("WARN" if warn else "VALID"), warn


def _invalid_reasons(facts: Facts) -> list[str]:
    """Reasons that make the number wrong; a file that computes something else is not timed, so nothing else is said."""
    if not facts.golden[0]:
        return ["golden mismatch: the file does not compute what the trained network did; nothing was timed"]
    reasons = []
    if not all(facts.golden):
        reasons.append("golden mismatch after the timing: outputs changed during the run")
    if facts.n < facts.min_count:
        reasons.append(f"too few samples: {facts.n} of {facts.min_count}")
    if facts.drift_percent is not None and abs(facts.drift_percent) > _DRIFT_INVALID:
        reasons.append(f"drift: latency moved by {facts.drift_percent:+.1f} % over the run")
    return reasons


def _warn_reasons(facts: Facts) -> list[str]:
    reasons = []
    if facts.steady is False:
        reasons.append("not steady: the warm-up ended before its windows agreed")
    if facts.drift_percent is not None and _DRIFT_WARN < abs(facts.drift_percent) <= _DRIFT_INVALID:
        reasons.append(f"drift: latency moved by {facts.drift_percent:+.1f} % over the run")
    if facts.foreign_cpus is not None and facts.foreign_cpus > _FOREIGN_SHARE * facts.num_cpus:
        reasons.append(f"foreign load: other processes kept {facts.foreign_cpus:.1f} of {facts.num_cpus} CPUs busy")
    if facts.num_inputs is not None and facts.num_inputs < _DISTINCT_INPUTS:
        reasons.append(f"few inputs: {facts.num_inputs} distinct images, {_DISTINCT_INPUTS} are wanted")
    return [*reasons, *facts.remarks]


def _bounded(samples_ns: Samples, percentile: int) -> float | None:
    return nearest_rank(samples_ns, percentile) / 1e6 if len(samples_ns) >= smallest_count(percentile) else None


def top1_percent(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    """Give the share of right classes in percent; ValueError where the two differ in length."""
    if predictions.shape != labels.shape:
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels: export the bundle again")
    # counted in integers: the same counts give the same number everywhere, to the last bit
    return int((predictions == labels).sum()) * 100 / len(labels)


def top1_interval(num_right: int, num: int) -> list[float]:
    """Give the 95 % interval of an accuracy in percent (Wilson's, which holds near 100 % too).

    It says how far another test set of this size would stray, not how far training would.
    """
    bounds = binomtest(num_right, num).proportion_ci(0.95, method="wilson")
    return [100 * float(bounds.low), 100 * float(bounds.high)]
