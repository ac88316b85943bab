"""The same pictures for documents, PNG and SVG: accuracy against latency, and accuracy by epoch or p50 as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.report.candidates import Candidate
from pipeline.report.picture_data import (
    NUM_LABELLED,
    OTHER_SHAPE,
    PALETTE,
    ROLE_COLOURS,
    SHAPES,
    X_EPOCH,
    X_LATENCY,
    Y_HELDOUT,
    Curve,
    accuracy_axis,
    accuracy_range,
    barred,
    front_lines,
    has_whiskers,
    is_wide,
    latency_range,
    short_name,
)
from pipeline.report.tradeoff import Standing, standing_by_key
from pipeline.report.wording import ROLES

_MARKS = {"VALID": "full", "WARN": "none"}
_BELOW, _ABOVE = (5, -10), (5, 4)  # points from a mark to its name


def write_drawings(
    paths: Sequence[Path],
    title: str,
    candidates: Sequence[Candidate],
    standing: Sequence[Standing],
    curves: Sequence[Curve],
) -> None:
    """Draw once and save to each path, in the format of its suffix; a picture without data says so.

    The right half has the training curves, or, where there are none, the bars of the first device.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "afpkd"}):  # the same records, the same file
        figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
        figure.suptitle(title, parse_math=False)
        left, right = figure.subplots(1, 2)
        _draw_scatter(left, candidates, standing)
        if curves or not candidates:
            _draw_curves(right, curves)
        else:
            _draw_bars(right, candidates, standing)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, format=path.suffix[1:], metadata=metadata)


def _draw_scatter(axes: Axes, candidates: Sequence[Candidate], standing: Sequence[Standing]) -> None:
    if not candidates:
        _say(axes, "no latency measured yet")
        return
    for front in front_lines(candidates, standing).values():
        x, y = [c.p50_ms.value for c in front], [c.accuracy.value for c in front]
        axes.plot(x, y, drawstyle="steps-post", color="#7d8590", linestyle=":", linewidth=1.5, zorder=1)
    groups: dict[tuple[str, str, str], list[Candidate]] = {}
    for c in candidates:
        groups.setdefault((c.role, c.precision, c.verdict), []).append(c)
    for key, members in groups.items():
        _draw_points(axes, *key, members, whiskers=has_whiskers(candidates))
    if len(candidates) <= NUM_LABELLED:
        for c in candidates:
            axes.annotate(
                short_name("model", c),
                (c.p50_ms.value, c.accuracy.value),
                xytext=_BELOW if c.precision == "fp16" else _ABOVE,  # it often lies where fp32 does
                textcoords="offset points",
                fontsize="x-small",
                parse_math=False,
            )
    axes.legend(handles=_legend(candidates), fontsize="small", loc="best")
    axes.set(xlabel=X_LATENCY, ylabel=accuracy_axis(candidates), ylim=accuracy_range(candidates))
    axes.set_xscale("log" if is_wide(candidates) else "linear")
    axes.set_xlim(latency_range(candidates))
    axes.grid(alpha=0.3)


def _draw_points(
    axes: Axes, role: str, precision: str, verdict: str, members: Sequence[Candidate], *, whiskers: bool
) -> Container:
    marker = SHAPES.get(precision, OTHER_SHAPE)[1] if verdict in _MARKS else "x"
    errors: dict[str, Any] = {
        name: [[e.value - e.low if e.low is not None else 0.0 for e in found], [_above(e) for e in found]]
        for name, found in (("xerr", [c.p50_ms for c in members]), ("yerr", [c.accuracy for c in members]))
    }
    return axes.errorbar(
        [c.p50_ms.value for c in members],
        [c.accuracy.value for c in members],
        **(errors if whiskers else {}),
        fmt=marker,
        color=ROLE_COLOURS[role],
        fillstyle=_MARKS.get(verdict, "full"),
        markersize=7,
        elinewidth=0.8,
        capsize=2,
    )


def _above(estimate: Any) -> float:
    return 0.0 if estimate.high is None else float(estimate.high - estimate.value)


def _legend(candidates: Sequence[Candidate]) -> list[Line2D]:
    """Roles by colour, verdicts by what fills the mark."""
    roles = dict.fromkeys(c.role for c in candidates)
    verdicts = dict.fromkeys(c.verdict for c in candidates if c.verdict != "VALID")
    shown = [Line2D([], [], marker="o", linestyle="", color=ROLE_COLOURS[role], label=ROLES[role]) for role in roles]
    for verdict in verdicts:
        hollow = verdict in _MARKS
        mark = Line2D([], [], marker="o" if hollow else "x", linestyle="", color="#7d8590", label=verdict)
        mark.set_fillstyle("none" if hollow else "full")
        shown.append(mark)
    return shown


def _draw_bars(axes: Axes, candidates: Sequence[Candidate], standing: Sequence[Standing]) -> None:
    device = candidates[0].device
    places = standing_by_key(candidates, standing)
    group = barred([c for c in candidates if c.device == device], places)
    rows = range(len(group))
    axes.barh(
        rows,
        [c.p50_ms.value for c in group],
        xerr=[[c.p50_ms.value - (c.p50_ms.low or c.p50_ms.value) for c in group], [_above(c.p50_ms) for c in group]],
        color=[ROLE_COLOURS.get(c.role, PALETTE[0]) for c in group],
        height=0.6,
    )
    axes.set_yticks(rows, [c.file for c in group], fontsize="x-small", parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"median latency on {device} (ms)", parse_math=False)
    axes.grid(alpha=0.3, axis="x")


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    if not curves:
        _say(axes, "no training curves")
        return
    for curve in curves:
        marked = [i for i, epoch in enumerate(curve.epochs) if epoch == curve.selected_epoch]
        axes.plot(
            curve.epochs,
            curve.values,
            color=ROLE_COLOURS[curve.role],
            marker="o",
            markevery=marked,
            label=curve.label,
        )
    axes.set(xlabel=X_EPOCH, ylabel=Y_HELDOUT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def _say(axes: Axes, words: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center")
