"""What both kinds of pictures draw: colours, shapes, series, the front, the ends of the axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from afpkd.record import Json
from pipeline.report.candidates import Candidate, Key
from pipeline.report.records import Records
from pipeline.report.tradeoff import Place, Standing
from pipeline.report.wording import ROLES, metric_words

# Told apart by the colour-blind too, each at least 3:1 on white and on near-black; shape says the same again.
ROLE_COLOURS = {"teacher": "#7d8590", "student": "#2f7de1", "undistilled": "#d9730d"}
PALETTE = ("#2f7de1", "#d9730d", "#1f9a6b", "#b455c4", "#c23b4f", "#8a7a1f", "#3a93a5", "#7d8590")
SHAPES = {"fp32": ("circle", "o"), "fp16": ("square", "s"), "int8": ("diamond", "D")}
X_LATENCY = "median latency (ms)"
X_EPOCH, Y_HELDOUT, Y_LOSS = "epoch", "held-out accuracy (%)", "loss"
OTHER_SHAPE = ("hexagon", "h")

NUM_LABELLED = 12
"""Points that still have their names beside them."""
_NUM_WHISKERS = 60  # points that still have intervals drawn; the rest say them when pointed at
NUM_BARS = 24
_WIDE = 30.0  # ratio of latencies beyond which the axis is logarithmic

Series = Callable[[Candidate], str]


class Curve(NamedTuple):
    """One training: a score in percent, or a loss, by epoch; and the epoch whose weights travel on."""

    role: str
    label: str
    epochs: list[int]
    values: list[float]
    selected_epoch: int | None


def series_of(candidates: Sequence[Candidate]) -> dict[str, Series]:
    """Give the ways to tell candidates apart by colour; only those that tell any apart, and the model always."""
    ways: dict[str, Series] = {
        "model": lambda c: ROLES[c.role],
        "student": lambda c: c.model,
        "method": lambda c: c.method,
        "precision": lambda c: c.precision,
        "device": lambda c: c.device,
        "recipe": lambda c: c.recipe,
    }
    several = {name for name, way in ways.items() if len({way(c) for c in candidates}) > 1}
    if len({ways["student"](c) for c in candidates}) == len({ways["model"](c) for c in candidates}):
        several -= {"student"}  # the same again
    return {name: way for name, way in ways.items() if name == "model" or name in several}


def front_lines(
    candidates: Sequence[Candidate], standing: Sequence[Standing]
) -> dict[tuple[str, ...], list[Candidate]]:
    """Give the front of each data set, device and conditions, in this order, from fast to slow."""
    fronts: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate, place in zip(candidates, standing, strict=True):
        if place.place is Place.front:
            fronts.setdefault((candidate.data, *candidate.place), []).append(candidate)
    return {key: sorted(front, key=lambda c: c.p50_ms.value) for key, front in fronts.items()}


def barred(group: Sequence[Candidate], places: Mapping[Key, Standing]) -> list[Candidate]:
    """Choose at most NUM_BARS of a device, fastest first: what is on the front, then the fastest of the rest."""
    wanted = sorted(group, key=lambda c: (places[c.key].place is not Place.front, not c.is_usable, c.p50_ms.value))
    return sorted(wanted[:NUM_BARS], key=lambda c: c.p50_ms.value)


def curves_of(run: Records) -> list[Curve]:
    """Give a curve for each role whose epochs were tested on the held-out split."""
    return _curves(run, list(run.curves), lambda epoch: epoch.get("heldout_ap", epoch.get("heldout_top1")))


def loss_curves_of(run: Records) -> dict[str, list[Curve]]:
    """Give by name of each loss term its curves: of the student, and of the undistilled one where it has that term."""
    students = [role for role in ("student", "undistilled") if role in run.curves]
    terms = dict.fromkeys(name for role in students for epoch in run.curves[role] for name in epoch.get("losses", {}))
    return {term: _curves(run, students, _loss(term)) for term in terms}


def _loss(term: str) -> Callable[[Json], float | None]:
    return lambda epoch: epoch.get("losses", {}).get(term)


def _curves(run: Records, roles: Sequence[str], value_of: Callable[[Json], float | None]) -> list[Curve]:
    """Give a curve for each role that has values."""
    curves = []
    for role in roles:
        told = [(epoch["epoch"], value) for epoch in run.curves[role] if (value := value_of(epoch)) is not None]
        if told:
            epochs, values = map(list, zip(*told, strict=True))
            curves.append(Curve(role, ROLES[role], epochs, values, run.records.get(role, {}).get("selected_epoch")))
    return curves


def short_name(way: str, candidate: Candidate) -> str:
    """Say beside a point what its colour does not."""
    return ROLES[candidate.role] if way == "precision" else candidate.precision


def is_wide(candidates: Sequence[Candidate]) -> bool:
    """Whether latencies spread so far that only a logarithmic axis shows them all."""
    values = [c.p50_ms.value for c in candidates]
    return bool(values) and max(values) > _WIDE * min(values) > 0


def latency_range(candidates: Sequence[Candidate]) -> tuple[float, float]:
    """Ends of the latency axis in ms: from 0, so that lengths compare, with room for the rightmost name."""
    ends = [c.p50_ms.value if c.p50_ms.high is None else c.p50_ms.high for c in candidates]
    if is_wide(candidates):
        return 0.7 * min(c.p50_ms.value for c in candidates), 1.6 * max(ends)
    return 0.0, 1.15 * max(ends, default=1.0)


def accuracy_axis(candidates: Sequence[Candidate]) -> str:
    """Name the accuracy axis."""
    return f"test {metric_words({c.metric for c in candidates} or {'top1'})} (%)"


def accuracy_range(candidates: Sequence[Candidate]) -> tuple[float, float]:
    """Ends of the accuracy axis: it does not start at 0, or the points of one recipe would lie on a line."""
    ends = [(c.accuracy if has_whiskers(candidates) else c.accuracy[:1]) for c in candidates]
    values = [end for estimate in ends for end in estimate if end is not None] or [0.0, 100.0]
    margin = max(0.12 * (max(values) - min(values)), 0.5)
    return min(values) - margin, max(values) + margin


def has_whiskers(candidates: Sequence[Candidate]) -> bool:
    """Whether intervals can still be told apart."""
    return len(candidates) <= _NUM_WHISKERS
