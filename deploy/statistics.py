"""Samples -> numbers that can be defended: percentiles with intervals and bounds, throughput, accuracy. Pure functions.

No sample is ever removed: the slow calls are what an application feels. scipy.stats is imported where it is needed: it
takes a second, and a report or a run that finds all done needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.series import bootstrap_intervals, num_effective

Samples = NDArray[np.int64]

PERCENTILES = (50, 90, 95, 99)
LEVEL = 0.95
"""Of every interval; MLPerf's bounds have 0.99."""

_DEPENDENT = 0.5
"""Share of the samples that count as independent, below which an interval is no longer that of independent samples. By
luck alone it is reached by one independent series in some hundred, whose interval is then a little wider."""


def latency_ms(samples_ns: Samples) -> dict[str, float | None]:
    """Give `min`, `mean`, `max` and of each percentile `p50`, its interval `p50_lo`, `p50_hi`, and `p50_bound`; in ms.

    The interval holds the percentile of the process that made the samples with 95 %; the bound, MLPerf's early-stopping
    estimate, is not exceeded by it with 99 %. None where the samples are too few, or too dependent, to say so.
    """
    numbers: dict[str, float | None] = dict.fromkeys(("min", "mean", "max"))
    if len(samples_ns):
        numbers = {"min": samples_ns.min(), "mean": samples_ns.mean(), "max": samples_ns.max()}
    known = [percentile for percentile in PERCENTILES if len(samples_ns) >= smallest_count(percentile)]
    worth = worth_of(samples_ns, known)
    found = intervals(samples_ns, worth)
    for percentile in PERCENTILES:
        name, bounded = f"p{percentile}", percentile in known
        numbers[name] = nearest_rank(samples_ns, percentile) if bounded else None
        numbers[f"{name}_lo"], numbers[f"{name}_hi"] = found.get(percentile, (None, None))
        numbers[f"{name}_bound"] = upper_bound(samples_ns, percentile, worth[percentile]) if bounded else None
    return {name: None if value is None else float(value) / 1e6 for name, value in numbers.items()}


def of_runs(tables: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Put `latency_ms` of several processes together: the median process, and an interval that holds every process's.

    Processes differ by more than calls do: the envelope of their intervals says so. None where one says nothing.
    """
    combined: dict[str, float | None] = {}
    for name in tables[0]:
        found = [table[name] for table in tables]
        known = [value for value in found if value is not None]
        how = _ENVELOPE.get(name.rpartition("_")[2], np.median)
        combined[name] = float(how(known)) if len(known) == len(found) else None
    return combined


_ENVELOPE: dict[str, Any] = {"min": min, "max": max, "lo": min, "hi": max, "bound": max}


def spread_percent(values: list[float]) -> float:
    """Give how far apart processes' numbers lie, in percent of their median."""
    return float(100 * (max(values) - min(values)) / np.median(values))


def nearest_rank(samples: Samples, percentile: int) -> int:
    """Give the smallest sample that at least `percentile` percent of all do not exceed: always one that was seen.

    `percentile` in 1..100; ValueError without samples.
    """
    if len(samples) == 0:
        raise ValueError("a percentile of no samples: measure first")
    return _ranked(samples, _rank(len(samples), percentile))


def worth_of(samples: Samples, percentiles: Sequence[int]) -> dict[int, float]:
    """Give percentile -> as how many independent samples they count there (`series.num_effective`)."""
    return {percentile: num_effective(samples, nearest_rank(samples, percentile)) for percentile in percentiles}


def intervals(samples: Samples, worth: Mapping[int, float]) -> dict[int, tuple[float | None, float | None]]:
    """Give the 95 % interval of each percentile; None for an end that the samples cannot bound.

    worth: of the percentiles that are asked for (`worth_of`).

    Independent samples: two of them, by their ranks (`interval_ranks`), whatever their distribution. Dependent ones
    carry less: the ranks are those of as many independent samples as they are worth, and where the moving-block
    bootstrap is wider, its ends stand.
    """
    found = {percentile: _by_ranks(samples, percentile, int(worth[percentile])) for percentile in worth}
    dependent = [percentile for percentile in worth if worth[percentile] < _DEPENDENT * len(samples)]
    for percentile, (low, high) in bootstrap_intervals(samples, dependent, worth, level=LEVEL).items():
        lowest, highest = found[percentile]
        found[percentile] = (
            None if lowest is None else min(low, lowest),
            None if highest is None else max(high, highest),
        )
    return found


@cache
def interval_ranks(count: int, percentile: int) -> tuple[int, int]:
    """Give the ranks (from 1) of the samples between which the percentile lies with at least 95 %.

    How many of `count` independent samples lie below a percentile is binomial, so the chance that it lies between two
    ranks needs no distribution (David and Nagaraja, Order Statistics, 7.1). Of the pairs that suffice: the closest, and
    of those the one whose two tails differ least. A rank of 0 or of `count` + 1: no sample bounds that side.
    """
    from scipy.stats import binom

    share = percentile / 100
    ranks = np.arange(count + 2)
    below = binom.cdf(ranks - 1, count, share)  # chance that fewer than `rank` samples lie below
    best: tuple[int, float, int, int] | None = None
    for low in range(int(binom.ppf(1e-4, count, share)), int(binom.ppf(1 - LEVEL, count, share)) + 1):
        high = max(low + 1, int(np.searchsorted(below, below[low] + LEVEL)))
        if high <= count + 1:
            candidate = (high - low, abs(below[low] - (1 - below[high])), low, high)
            best = candidate if best is None else min(best, candidate)
    return best[2:] if best else (0, count + 1)


def upper_bound(samples: Samples, percentile: int, worth: float | None = None) -> int | None:
    """Give MLPerf's early-stopping estimate: the percentile does not exceed it with 99 %.

    The t-th highest sample for the largest t with `smallest_count(percentile, num_above=t)` samples at most: of 201
    samples LoadGen discards the 9 highest for the 90th percentile. None under `smallest_count(percentile)` samples.
    MLPerf takes its samples for independent. worth: as how many independent ones these count; where that is less than
    half of them the rank is that of so many.
    """
    from scipy.stats import binom

    count = len(samples) if worth is None or worth >= _DEPENDENT * len(samples) else int(worth)
    if count < smallest_count(percentile):
        return None
    # h samples below and t above bound it where the chance of h or more below is at most 1 %
    most_above = count - int(binom.ppf(0.99, count, percentile / 100)) - 1
    return _ranked(samples, -(-(count - most_above + 1) * len(samples) // count))


@cache
def smallest_count(percentile: int, *, num_above: int = 1, confidence: float = 0.99) -> int:
    """Give the fewest samples that bound a percentile when `num_above` of them may lie above the bound.

    MLPerf's early-stopping rule (inference_rules, "early stopping"; tolerance d = 0): with h samples below and t above,
    the bound holds at the confidence c where I_p(h, t + 1) <= 1 - c, I being the regularised incomplete beta function,
    the chance that so few lie above by luck. Gives h + t for the smallest such h.
    """
    from scipy.stats import beta

    num_below = 1
    while beta.cdf(percentile / 100, num_below, num_above + 1) > 1 - confidence:
        num_below += 1
    return num_below + num_above


def throughput_ips(samples_ns: Samples, batch: int) -> float | None:
    """Give images per second of one stream: images done over the time spent in calls. None without samples."""
    return float(batch * len(samples_ns) * 1e9 / samples_ns.sum()) if len(samples_ns) else None


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
    from scipy.stats import binomtest

    bounds = binomtest(num_right, num).proportion_ci(LEVEL, method="wilson")
    return [100 * float(bounds.low), 100 * float(bounds.high)]


def _by_ranks(samples: Samples, percentile: int, worth: int) -> tuple[float | None, float | None]:
    """The interval by ranks; `worth`: how many independent samples they amount to."""
    count, worth = len(samples), max(1, worth)
    low, high = interval_ranks(worth, percentile)
    return (
        None if low < 1 else _ranked(samples, -(-low * count // worth)),
        None if high > worth else _ranked(samples, -(-high * count // worth)),
    )


def _rank(count: int, percentile: int) -> int:
    return -(-percentile * count // 100)  # the ceiling, in integers: 0.07 * 100 is not 7 in floats


def _ranked(samples: Samples, rank: int) -> int:
    return int(np.partition(samples, rank - 1)[rank - 1])
