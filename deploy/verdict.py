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
_STEAL = 0.05  # CPUs: a call's share of what a neighbour takes is a slow call
_STALLED_SHARE = 0.01
_GPU_LOAD = 10.0  # percent
_OBSERVER = 1.0  # percent
_CROSS_CHECK = 5.0  # percent (protocol 4.16)
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
    failed: str | None = None
    """With which error it ended."""
    foreign_cpus: float | None
    num_cpus: int
    num_inputs: int | None
    num_effective: float | None = None
    """How many independent samples the median rests on."""
    longest_share: float | None = None
    """Share of all time in calls that was spent in those 100 times longer than the median."""
    gpu_load_percent: float | None = None
    """How busy the GPU was before anything of ours was loaded (Orin, Xavier)."""
    gpu_processes: Sequence[str] = ()
    """Others that had the GPU open before or after, `name (pid)`."""
    steal_cpus: float | None = None
    """CPUs that other guests of the machine's host took."""
    slowed_by: Sequence[str] = ()
    """What slowed the machine down, in words."""
    clocks_asked: str = "as-is"
    clocks: str = "as-is"
    """What became of it: `as-is: why not` where it was refused, or the board is in a power mode of an earlier job."""
    clocks_free: bool = False
    """Whether the device's own limits say that its clocks may move, whatever became of what was asked."""
    wrong_runtime: str | None = None
    """What is other than asked for: another library, another number of threads."""
    observer_low_percent: float | None = None
    """What the sampler cost for certain: the lower end of its interval."""
    unwatched_s: float | None = None
    """The longest stretch in which the sampler read nothing."""
    not_finite: int = 0
    """Of the outputs that were looked at during the timing: how many held NaN or infinity."""
    cross_check_percent: float | None = None
    """By how much another tool's GPU time differs from ours (trtexec)."""
    remarks: Sequence[str] = ()
    """What must be said beside the number, and is no fault of the measurement."""


def verdict(facts: Facts) -> tuple[Verdict, list[str]]:
    """Judge a row: INVALID where its number must not be used, WARN where it needs its reasons beside it."""
    invalid, warn = _invalid_reasons(facts), _warn_reasons(facts)
    if invalid:
        return "INVALID", invalid + warn
    return ("WARN" if warn else "VALID"), warn


def _invalid_reasons(facts: Facts) -> list[str]:
    """Reasons that make the number wrong; where nothing was timed, nothing else is said."""
    if facts.failed:
        return [f"failed: {facts.failed}"]
    if not facts.golden[0]:
        return ["golden mismatch: the file does not compute what the trained network did; nothing was timed"]
    reasons = []
    if not all(facts.golden):
        reasons.append("golden mismatch after the timing: outputs changed during the run")
    if facts.not_finite:
        reasons.append(f"not finite: {facts.not_finite} outputs seen during the timing hold NaN or infinity")
    if facts.n < facts.min_count:
        reasons.append(f"too few samples: {facts.n} of {facts.min_count}")
    if _moved(facts) > _DRIFT_INVALID:
        reasons.append(_drift_told(facts))
    if facts.wander_percent is not None and facts.wander_percent > _WANDER_INVALID:
        reasons.append(_wander_told(facts))
    if facts.wrong_runtime:
        reasons.append(f"wrong runtime: {facts.wrong_runtime}")
    if facts.clocks == "locked":
        reasons += _throttled(facts)
    return reasons


def _warn_reasons(facts: Facts) -> list[str]:
    reasons = []
    if facts.steady is False:
        reasons.append("not steady: the warm-up ended before its windows agreed")
    if _DRIFT_WARN < _moved(facts) <= _DRIFT_INVALID:
        reasons.append(_drift_told(facts))
    wander = facts.wander_percent or 0.0
    beyond_drift = wander - _moved(facts)  # a drift takes the tenths as far apart by itself, and is told as drift alone
    if beyond_drift > _WANDER_WARN and wander <= _WANDER_INVALID:
        reasons.append(_wander_told(facts))
    if facts.num_effective is not None and facts.num_effective < facts.min_count / _WORTH:
        reasons.append(
            f"dependent samples: {facts.n} calls are worth {facts.num_effective:.0f} independent ones, "
            f"{facts.min_count / _WORTH:.0f} are wanted"
        )
    became, _, why = facts.clocks.partition(": ")
    if became == "as-is" and (why or facts.clocks_asked != "as-is"):
        why = why or "nobody set them"
        reasons.append(f"clocks not as asked: {facts.clocks_asked} was asked for, but {why}")
    if facts.clocks == "locked" and facts.clocks_free:
        reasons.append("clocks not as asked: locked was reported, but lowest and highest clock still differ")
    if facts.clocks != "locked":
        reasons += _throttled(facts)
    if facts.cross_check_percent is not None and abs(facts.cross_check_percent) > _CROSS_CHECK:
        reasons.append(f"cross-check: trtexec's GPU time is {facts.cross_check_percent:+.1f} % from ours")
    reasons += _disturbed(facts)
    return [*reasons, *facts.remarks]


def _throttled(facts: Facts) -> list[str]:
    return [f"throttled: {cause}" for cause in facts.slowed_by]


def _disturbed(facts: Facts) -> list[str]:
    """What others did to the run, the observer among them."""
    reasons = []
    if facts.foreign_cpus is not None and facts.foreign_cpus > _FOREIGN_SHARE * facts.num_cpus:
        reasons.append(f"foreign load: other processes kept {facts.foreign_cpus:.1f} of {facts.num_cpus} CPUs busy")
    reasons += [f"foreign load: {process} has the GPU open" for process in facts.gpu_processes]
    if facts.gpu_load_percent is not None and facts.gpu_load_percent > _GPU_LOAD:
        reasons.append(f"foreign load: the GPU was {facts.gpu_load_percent:.0f} % busy before anything was loaded")
    if facts.steal_cpus is not None and facts.steal_cpus > _STEAL:
        reasons.append(f"foreign load: other guests of the machine's host took {facts.steal_cpus:.2f} CPUs")
    if facts.longest_share is not None and facts.longest_share > _STALLED_SHARE:
        share = 100 * facts.longest_share
        reasons.append(f"stalled: {share:.0f} % of the time went into calls 100 times longer than the median")
    if facts.observer_low_percent is not None and facts.observer_low_percent > _OBSERVER:
        reasons.append(f"observer cost: reading the sensors took {facts.observer_low_percent:.1f} % or more")
    if facts.unwatched_s:
        reasons.append(f"not watched: no sensor was read for {facts.unwatched_s:.1f} s, so nothing is known of it")
    if facts.num_inputs is not None and facts.num_inputs < _DISTINCT_INPUTS:
        reasons.append(f"few inputs: {facts.num_inputs} distinct images, {_DISTINCT_INPUTS} are wanted")
    return reasons


def _moved(facts: Facts) -> float:
    """Percent by which the latency moved for certain; 0 where chance may have done it."""
    return abs(facts.drift.percent) if facts.drift is not None and facts.drift.certain else 0.0


def _drift_told(facts: Facts) -> str:
    assert facts.drift is not None
    return f"drift: latency moved by {facts.drift.percent:+.1f} % over the run"


def _wander_told(facts: Facts) -> str:
    return f"unsteady: the medians of the run's tenths lie {facts.wander_percent:.1f} % apart"
