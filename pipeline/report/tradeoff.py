"""Accuracy against latency: which candidates nothing beats, and which one to take for a budget. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.report.candidates import Candidate, Estimate, Key

NEAR_POINTS = 1.0
"""Points of accuracy that are given up for speed where no `min_accuracy` is asked for: a file's budget by default."""


class Place(StrEnum):
    """Where a candidate stands among those of its data set and device that were measured under the same conditions."""

    front = "front"
    """Nothing is both at least as accurate and at least as fast."""
    undecided = "undecided"
    """Something looks better, yet the intervals do not separate."""
    dominated = "dominated"
    """Something is better, and the intervals say so."""
    unjudged = "not judged"
    """Its latency must not be used."""


class Standing(NamedTuple):
    """A candidate's place, and the fastest of what looks better."""

    place: Place
    by: Candidate | None = None


class Budget(NamedTuple):
    """What is asked for: p90 in ms at most, top-1 in percent at least. None: not asked for."""

    max_latency_ms: float | None = None
    min_accuracy: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked for."""
        return self.max_latency_ms is None and self.min_accuracy is None

    def admits(self, candidate: Candidate) -> bool:
        """Whether the upper end of p90 (of p50, where p90 is not known) and the measured accuracy keep to it.

        An end that is not known is its number itself: who shows the choice says so.
        """
        slowest = upper_end(candidate.p90_ms or candidate.p50_ms)
        fast = self.max_latency_ms is None or slowest <= self.max_latency_ms
        return fast and (self.min_accuracy is None or candidate.accuracy.value >= self.min_accuracy)


def upper_end(estimate: Estimate) -> float:
    """Give the upper end of the interval, the number itself where there is none."""
    return estimate.value if estimate.high is None else estimate.high


def standings(candidates: Sequence[Candidate]) -> list[Standing]:
    """Give each candidate's standing, in their order.

    One beats another where it is at least as accurate and as fast, and one of the two more so. It dominates where,
    besides, the intervals separate in each of the two that differ: an overlap is no proof.
    """
    found = [Standing(Place.unjudged)] * len(candidates)
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, candidate in enumerate(candidates):
        if candidate.is_usable:
            groups.setdefault((candidate.data, *candidate.place), []).append(i)
    for members in groups.values():
        for i, standing in zip(members, _standings([candidates[i] for i in members]), strict=True):
            found[i] = standing
    return found


def standing_by_key(candidates: Sequence[Candidate], standing: Sequence[Standing]) -> dict[Key, Standing]:
    """Give the same, to be looked up."""
    return {candidate.key: found for candidate, found in zip(candidates, standing, strict=True)}


def choose(candidates: Sequence[Candidate], budget: Budget) -> Candidate | None:
    """Give the distilled student's file to take: the fastest that keeps to the budget.

    Where no accuracy is asked for, only those within NEAR_POINTS of the most accurate count. INVALID rows never do.
    """
    fitting = [c for c in candidates if c.role == "student" and c.is_usable and budget.admits(c)]
    if not fitting:
        return None
    if budget.min_accuracy is None:
        best = max(c.accuracy.value for c in fitting)
        fitting = [c for c in fitting if c.accuracy.value >= best - NEAR_POINTS]
    return min(fitting, key=lambda c: (c.p50_ms.value, -c.accuracy.value, c.size_bytes or 0))


_Matrix = NDArray[np.bool_]


def _standings(group: Sequence[Candidate]) -> list[Standing]:
    slow = _column([c.p50_ms for c in group])
    wrong = _column([c.accuracy.negative() for c in group])
    less_slow, less_wrong = _less(slow), _less(wrong)
    beats = ~less_slow.T & ~less_wrong.T & (less_slow | less_wrong)  # row i beats column j
    proven = beats & (_surely_less(slow) | ~less_slow) & (_surely_less(wrong) | ~less_wrong)
    by_speed = np.argsort(slow[0], kind="stable")
    return [_standing(group, beats[:, j], proven[:, j], by_speed) for j in range(len(group))]


def _standing(group: Sequence[Candidate], beats: _Matrix, proven: _Matrix, by_speed: NDArray[np.intp]) -> Standing:
    for place, column in ((Place.dominated, proven), (Place.undecided, beats)):
        if column.any():
            return Standing(place, group[next(i for i in by_speed if column[i])])
    return Standing(Place.front)


def _column(estimates: Sequence[Estimate]) -> NDArray[np.float64]:
    """Values, low ends, high ends; an end that is not known is NaN, which compares with nothing."""
    return np.array([[np.nan if end is None else end for end in estimate] for estimate in estimates], dtype=float).T


def _less(column: NDArray[np.float64]) -> _Matrix:
    """[i, j]: the value of i is below that of j."""
    found: _Matrix = column[0][:, None] < column[0][None, :]
    return found


def _surely_less(column: NDArray[np.float64]) -> _Matrix:
    """[i, j]: the whole interval of i is below that of j."""
    found: _Matrix = column[2][:, None] < column[1][None, :]
    return found
