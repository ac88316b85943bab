"""Where MACs mislead: the order by MACs beside the order by the clock, on each device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.report.candidates import Candidate
from pipeline.report.tables import Table
from pipeline.report.wording import milliseconds, si, times

_SHOWN = 8  # pairs, the most misleading first


class Misled(NamedTuple):
    """Two files on one device that the clock orders against their MACs, or as MACs see no difference."""

    lighter: Candidate
    """The one with fewer MACs, or as many; the slower of the two."""
    heavier: Candidate
    slowdown: float
    """How many times slower the lighter one is; its interval lies wholly above the other's."""


def misled(candidates: Sequence[Candidate]) -> list[Misled]:
    """Find each candidate that is surely slower than one with at least as many MACs: its worst pair, worst first."""
    counted = _counted(candidates)
    pairs = []
    for place in dict.fromkeys(c.place for c in counted):
        group = sorted((c for c in counted if c.place == place), key=lambda c: c.macs or 0, reverse=True)
        fastest: Candidate | None = None  # of those with at least as many MACs
        for macs in dict.fromkeys(c.macs for c in group):
            same = [c for c in group if c.macs == macs]
            fastest = min([*same, *([fastest] if fastest else [])], key=lambda c: c.p50_ms.value)
            pairs += [
                Misled(c, fastest, c.p50_ms.value / fastest.p50_ms.value)
                for c in same
                if fastest.p50_ms.surely_below(c.p50_ms)
            ]
    return sorted(pairs, key=lambda pair: -pair.slowdown)


def macs_table(candidates: Sequence[Candidate]) -> Table:
    """The worst pairs with both ranks, and how well MACs order the latencies of each device."""
    pairs = misled(candidates)
    counted = _counted(candidates)
    rows = [_row(pair, [c for c in counted if c.place == pair.lighter.place]) for pair in pairs[:_SHOWN]]
    columns = ["Device", "File", "MACs", "Rank by MACs", "p50 (ms)", "Rank by p50", "Slower than", "By"]
    notes = [
        *([f"The {_SHOWN} worst of {len(pairs)} such files."] if len(pairs) > _SHOWN else []),
        "Each file here is surely slower than one with as many MACs or more (pairs whose intervals meet are left out). "
        "MACs count multiplications, not memory traffic, launches or number formats: only the clock knows those.",
        *_correlations(candidates),
    ]
    return Table("Where MACs mislead", columns, rows, frozenset({2, 3, 4, 5, 7}), notes)


def _row(pair: Misled, beside: Sequence[Candidate]) -> list[str]:
    own, other = pair.lighter, pair.heavier
    by_macs, by_clock = _rank(own.macs or 0, [c.macs or 0 for c in beside]), _rank(_p50(own), [_p50(c) for c in beside])
    return [
        *(own.device, own.file, si(own.macs), by_macs, milliseconds(own.p50_ms.value), by_clock),
        f"{other.file}: {si(other.macs)} MACs, {milliseconds(other.p50_ms.value)} ms",
        times(pair.slowdown, "", "", "")[0],
    ]


def _counted(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those with MACs and a usable latency; the undistilled control is the student's network once more."""
    return [c for c in candidates if c.macs is not None and c.is_usable and c.role != "undistilled"]


def _p50(candidate: Candidate) -> float:
    return candidate.p50_ms.value


def _rank(own: float, among: Sequence[float]) -> str:
    """`2 of 9`; those that are equal share the better rank."""
    return f"{1 + sum(value < own for value in among)} of {len(among)}"


def _correlations(candidates: Sequence[Candidate]) -> list[str]:
    """Spearman's rank correlation of MACs and latency of each place that has several of both."""
    words = []
    counted = _counted(candidates)
    for place in dict.fromkeys(c.place for c in counted):
        group = [c for c in counted if c.place == place]
        if len({c.macs for c in group}) > 1 and len({c.p50_ms.value for c in group}) > 1:
            from scipy.stats import spearmanr  # a second, which other reports do without

            rho = spearmanr([c.macs for c in group], [c.p50_ms.value for c in group]).statistic
            words.append(
                f"On {group[0].device} the orders by MACs and by latency agree with a rank correlation of {rho:.2f} "
                f"over {len(group)} files (1: the same order, 0: none)."
            )
    return words
