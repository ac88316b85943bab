"""Samples in the order they were taken: how much they depend on each other, whether they drift. Pure functions.

Calls that follow each other share caches, clocks and neighbours: ten thousand of them may be worth a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int64]

_REPLICATES = 300
_SEED = 0
"""The same samples give the same interval."""

_WINDOWS = 20
_LEAST = 100


def num_effective(samples: Samples, threshold: int) -> float:
    """Give how many independent samples the share of `samples` up to `threshold` is worth; at most their number.

    Batch means, overlapping: the variance of that share over stretches of 2 sqrt(n) samples against what independent
    samples would have. The share rather than the mean: a single slow call in ten thousand rules a variance.
    """
    count = len(samples)
    inside = samples <= threshold
    if inside.all():  # the largest is what many calls took
        inside = samples < threshold
    share = inside.mean()
    size = min(count // 4, round(2 * count**0.5))
    if share in (0, 1) or size < 2:
        return float(count)
    sums = np.concatenate([[0], np.cumsum(inside, dtype=np.int64)])
    means = (sums[size:] - sums[:-size]) / size
    # the stretches' mean is the series' own, which makes their spread too small by 1 - size / count
    variance = np.square(means - share).mean() / (1 - size / count)
    return float(min(count, share * (1 - share) * count / (size * variance))) if variance else float(count)


def bootstrap_intervals(
    samples: Samples, percentiles: Sequence[int], worth: Mapping[int, float], *, level: float
) -> dict[int, tuple[float, float]]:
    """Give each percentile's interval by the moving-block bootstrap (Kuensch 1989), which keeps what hangs together.

    worth: `num_effective` of each, which sets the blocks' length: for a first-order autoregression the one that
    estimates its variance best is (3/2)^(1/3) (2 rho / (1 - rho^2))^(2/3) n^(1/3), and n / worth is (1 + rho) /
    (1 - rho); half as long again, since percentiles need longer ones than means do.
    """
    if not percentiles:
        return {}
    count = len(samples)
    excess = max(count / worth[percentile] for percentile in percentiles)
    length = int(np.clip(1.1 * (excess * count**0.5) ** (2 / 3), 1, max(1, count // 8)))
    ranks = [-(-percentile * count // 100) - 1 for percentile in percentiles]
    rng, offsets = np.random.default_rng(_SEED), np.arange(length)
    found = np.empty((_REPLICATES, len(ranks)))
    for row in found:
        starts = rng.integers(0, count - length + 1, size=-(-count // length))
        drawn = samples[(starts[:, None] + offsets).ravel()[:count]]
        row[:] = np.partition(drawn, ranks)[ranks]
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = np.quantile(found, tails, axis=0, method="inverted_cdf")
    return {percentile: (float(low), float(high)) for percentile, low, high in zip(percentiles, *ends, strict=True)}


class Drift(NamedTuple):
    """How far the latency moved from begin to end of the run, in percent of its median, with a 99 % interval."""

    percent: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether it moved one way at all: chance alone does not explain it."""
        return self.low > 0 or self.high < 0


def drift(samples: Samples) -> Drift | None:
    """Give the drift over the run; None under 100 samples.

    Theil-Sen slope over the medians of 20 windows: neither a pause nor a spike bends it. Its interval (Sen 1968) holds
    for independent medians; it is stretched by what neighbouring medians have in common once the slope is taken out,
    since a shared machine wanders, and a wandering series looks like a trend half of the time.
    """
    from scipy.stats import theilslopes

    if len(samples) < _LEAST:
        return None
    medians = _window_medians(samples)
    slope, _, low, high = theilslopes(medians, alpha=0.99)
    stretch = _stretch(medians - slope * np.arange(len(medians)))
    scale = 100 * len(medians) / np.median(medians)
    ends = (slope - stretch * (slope - low), slope + stretch * (high - slope))
    return Drift(float(slope * scale), float(ends[0] * scale), float(ends[1] * scale))


def wander_percent(samples: Samples) -> float | None:
    """Give how far apart the medians of the run's tenths lie, in percent of its median; None under 100 samples.

    It sees what a slope does not: an excursion and back, a step in the middle.
    """
    if len(samples) < _LEAST:
        return None
    medians = [np.median(window) for window in np.array_split(samples, 10)]
    return float(100 * (max(medians) - min(medians)) / np.median(samples))


def _window_medians(samples: Samples) -> NDArray[np.float64]:
    windows = np.array_split(samples, min(_WINDOWS, len(samples) // 10))
    return np.array([np.median(window) for window in windows])


def _stretch(residuals: NDArray[np.float64]) -> float:
    """How much wider an interval must be for residuals that hang together: sqrt((1 + r) / (1 - r)) of their lag-1 r.

    r is made larger by (1 + 4 r) / n, by which it comes out too small beside a fitted line (Kendall 1954).
    """
    centred = residuals - residuals.mean()
    variance = float(centred @ centred)
    if variance == 0:
        return 1.0
    raw = float(centred[:-1] @ centred[1:]) / variance
    corrected = min(0.95, max(0.0, raw + (1 + 4 * raw) / len(residuals)))
    return float(np.sqrt((1 + corrected) / (1 - corrected)))
