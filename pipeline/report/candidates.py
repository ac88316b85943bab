"""What there is to choose from: one candidate a measured file, of one recipe or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from afpkd.record import Json
from pipeline.report.conditions import Conditions, conditions_of
from pipeline.report.records import Records
from pipeline.report.wording import ROLES, method_words

Key = tuple[str, str, str, str]
"""Recipe, device, role, precision."""

BROKEN = ("golden mismatch", "not finite")
"""How reasons begin that say a file computes something else than what was trained."""

ONE_PROCESS = 0.05
"""By how much of itself either end of a single process's interval is moved out: the next process of the same file lies
elsewhere. On our machine 95 of 100 pairs of them are up to 9.5 % apart (bench/results/measurement.json)."""


class Estimate(NamedTuple):
    """A number with its 95 % interval; None where the record has no interval, and then it separates from nothing."""

    value: float
    low: float | None = None
    high: float | None = None

    def negative(self) -> Estimate:
        """Give the number of the other sign: what shrinks grows."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Estimate(-self.value, low, high)

    def surely_below(self, other: Estimate) -> bool:
        """Whether the whole interval lies below the other's."""
        return self.high is not None and other.low is not None and self.high < other.low

    def meets(self, other: Estimate) -> bool:
        """Whether the two may be the same number: neither lies surely below the other."""
        return not (self.surely_below(other) or other.surely_below(self))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One exported file on one device."""

    recipe: str
    of: str
    """The recipe again where there are several, to be said beside a file's name; else empty."""
    data: str
    """The data set: accuracies on different ones do not compare."""
    device: str
    role: str
    arch: str
    method: str
    precision: str
    metric: str
    """What `accuracy` is: top1, or ap of a detector; the two do not compare."""
    accuracy: Estimate
    """Percent."""
    p50_ms: Estimate
    p90_ms: Estimate | None
    macs: int | None
    num_params: int | None
    size_bytes: int | None
    energy_mj: float | None
    """Millijoules an image, net of the idle machine."""
    conditions: Conditions
    """Under which it was measured; latencies under others do not compare."""
    verdict: str
    reasons: tuple[str, ...]

    @property
    def key(self) -> Key:
        """Tell it from all others."""
        return self.recipe, self.device, self.role, self.precision

    @property
    def place(self) -> tuple[str, ...]:
        """Where and how it was measured: latencies compare within one place alone."""
        return self.device, *self.conditions.values()

    @property
    def is_usable(self) -> bool:
        """Whether its latency may be quoted at all."""
        return self.verdict != "INVALID"

    @property
    def why_not_scored(self) -> str:
        """Say why not even its accuracy counts, which a disturbed clock leaves alone; empty where it counts."""
        return next((reason for reason in self.reasons if reason.startswith(("outdated", *BROKEN))), "")

    @property
    def model(self) -> str:
        """Name the network, and how the student was made."""
        made = f" ({self.method})" if self.role == "student" else ""
        return f"{ROLES[self.role]} {self.arch}{made}"

    @property
    def file(self) -> str:
        """Name the file that was measured."""
        return f"{self.model}, {self.precision}{f' [{self.of}]' if self.of else ''}"

    @property
    def file_there(self) -> str:
        """Name the file and where it was measured."""
        return f"{self.file}, on {self.device}"


def candidates_of(runs: Sequence[Records]) -> list[Candidate]:
    """Give one for each profile that has both an accuracy and a median latency, in the order of runs and profiles."""
    names = _data_names(runs)
    return [
        _candidate(run, profile, run.name if len(runs) > 1 else "", names[run.name])
        for run in runs
        for profile in run.profiles
        if profile["latency_ms"]["p50"] is not None and accuracy_of_profile(profile) is not None
    ]


def latency_of(row: Json, percentile: str) -> Estimate | None:
    """Give `p50`, `p90` or `p99` of a row in ms, None where the samples could not bound it.

    Its interval is the record's; of a single process it is wider (`ONE_PROCESS`).
    """
    latency = row["latency_ms"]
    if latency.get(percentile) is None:
        return None
    apart = ONE_PROCESS if row.get("num_runs", 1) == 1 else 0.0
    low, high = latency.get(f"{percentile}_lo"), latency.get(f"{percentile}_hi")
    return Estimate(latency[percentile], low and low * (1 - apart), high and high * (1 + apart))


def metric_of(profile: Json) -> str:
    """Give the name of its accuracy: top1, or ap of a detector."""
    return "ap" if "ap" in profile else "top1"


def accuracy_of_profile(profile: Json) -> Estimate | None:
    """Give the accuracy of the measured file in percent, top-1 with its interval; None where it has none."""
    score = profile.get(metric_of(profile))
    if score is None:
        return None
    return Estimate(score, *(profile.get("top1_interval") or (None, None)))


def energy_mj(row: Json) -> float | None:
    """Give millijoules an image net of the idle machine, None where nothing measured them long enough."""
    joules: float | None = (row.get("energy") or {}).get("j_per_inference")
    return None if joules is None else 1e3 * joules


def _data_names(runs: Sequence[Records]) -> dict[str, str]:
    """Each run's data set, told apart by its images where others have the same name: `folder`, `coco`."""
    contents: dict[str, set[str]] = {}
    for run in runs:
        contents.setdefault(run.data(), set()).add(run.data_sha256())
    several = {name for name, found in contents.items() if len(found) > 1}
    return {r.name: f"{r.data()} {r.data_sha256()[:8]}" if r.data() in several else r.data() for r in runs}


def _candidate(run: Records, profile: Json, of: str, data: str) -> Candidate:
    p50 = latency_of(profile, "p50")
    accuracy = accuracy_of_profile(profile)
    assert p50 is not None, "candidates_of leaves out what was not timed"
    assert accuracy is not None, "nor what was not scored"
    record = run.records.get(profile["role"], {})
    return Candidate(
        recipe=run.name,
        of=of,
        data=data,
        device=profile["device"],
        role=profile["role"],
        arch=profile["arch"],
        method=method_words(record),
        precision=profile["precision"],
        metric=metric_of(profile),
        accuracy=accuracy,
        p50_ms=p50,
        p90_ms=latency_of(profile, "p90"),
        macs=profile.get("macs"),
        num_params=profile.get("num_params"),
        size_bytes=profile.get("size_bytes"),
        energy_mj=energy_mj(profile),
        conditions=conditions_of(profile),
        verdict=profile["verdict"],
        reasons=tuple(profile["reasons"]),
    )
