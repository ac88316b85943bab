"""Facts about a measurement -> VALID, WARN or INVALID, and why. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.series import Drift

Verdict = Literal["VALID", "WARN", "INVALID"]

_DRIFT_WARN, _DRIFT_INVALID = 3.0, 10.0  # percent over the run (protocol 4.6)
_WANDER_WARN, _WANDER_INVALID = 5.0, 25.0  # percent between the run's tenths; beyond, no one number describes it
_FOREIGN_SHARE = 0.1  # of the CPUs; an idle desktop takes a few percent
_DISTINCT_INPUTS = 64  # protocol 4.3
_WORTH = 4  # dependent samples are worth a quarter of the count asked for, at least (protocol 4.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a verdict rests on. None: not known, and so not held against the row."""

    n: int
    min_count: int
    steady: bool | None
    drift: Drift | None
    wander_percent: float | None
    golden: Sequence[bool]
    """One entry a golden check that was made, in order: before the timing, after it."""
    foreign_cpus: float | None
    num_cpus: int
    num_inputs: int | None
    num_effective: float | None = None
    """How many independent samples the median rests on."""
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
    if _moved(facts) > _DRIFT_INVALID:
        reasons.append(_drift_told(facts))
    if facts.wander_percent is not None and facts.wander_percent > _WANDER_INVALID:
        reasons.append(_wander_told(facts))
    return reasons


def _warn_reasons(facts: Facts) -> list[str]:
    reasons = []
    if facts.steady is False:
        reasons.append("not steady: the warm-up ended before its windows agreed")
    if _DRIFT_WARN < _moved(facts) <= _DRIFT_INVALID:
        reasons.append(_drift_told(facts))
    wander = facts.wander_percent or 0.0
    if _WANDER_WARN < wander <= _WANDER_INVALID and not _moved(facts):  # what moved one way is told as drift alone
        reasons.append(_wander_told(facts))
    if facts.num_effective is not None and facts.num_effective < facts.min_count / _WORTH:
        reasons.append(
            f"dependent samples: {facts.n} calls are worth {facts.num_effective:.0f} independent ones, "
            f"{facts.min_count / _WORTH:.0f} are wanted"
        )
    if facts.foreign_cpus is not None and facts.foreign_cpus > _FOREIGN_SHARE * facts.num_cpus:
        reasons.append(f"foreign load: other processes kept {facts.foreign_cpus:.1f} of {facts.num_cpus} CPUs busy")
    if facts.num_inputs is not None and facts.num_inputs < _DISTINCT_INPUTS:
        reasons.append(f"few inputs: {facts.num_inputs} distinct images, {_DISTINCT_INPUTS} are wanted")
    return [*reasons, *facts.remarks]


def _moved(facts: Facts) -> float:
    """Percent by which the latency moved for certain; 0 where chance may have done it."""
    return abs(facts.drift.percent) if facts.drift is not None and facts.drift.certain else 0.0


def _drift_told(facts: Facts) -> str:
    assert facts.drift is not None
    return f"drift: latency moved by {facts.drift.percent:+.1f} % over the run"


def _wander_told(facts: Facts) -> str:
    return f"unsteady: the medians of the run's tenths lie {facts.wander_percent:.1f} % apart"
