"""The report's two pictures, accuracy against latency and accuracy by epoch: for the page (plotly) and as PNG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.findings import ROLES, Records, milliseconds, percent

# Told apart by the colour-blind too, each at least 3:1 on white and on near-black; shape says the same again.
_COLOURS = {"teacher": "#7d8590", "student": "#2f7de1", "undistilled": "#d9730d"}
_SHAPES = {"teacher": ("square", "s"), "student": ("circle", "o"), "undistilled": ("diamond", "D")}
_PLACE_SHAPES = (
    ("circle", "o"),
    ("square", "s"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("star", "*"),
    ("hexagon", "h"),
)
_GRID = "rgba(128,128,128,0.25)"
_X_LATENCY, _Y_TEST = "latency, batch 1 (ms; lower is better)", "test top-1 (%; higher is better)"
_X_EPOCH, _Y_HELDOUT = "epoch", "held-out top-1 (%)"


class Point(NamedTuple):
    """One measured file: its median latency, a whisker up to `high_ms` (p90), and its accuracy in percent."""

    role: str
    label: str
    p50_ms: float
    high_ms: float
    top1: float
    verdict: str
    shape: tuple[str, str]
    """Of the marker, for plotly and for matplotlib: the role's, or the place's where there are several."""


class Curve(NamedTuple):
    """One training: held-out top-1 in percent by epoch, and the epoch whose weights travel on."""

    role: str
    label: str
    epochs: list[int]
    heldout_top1: list[float]
    selected_epoch: int | None


def points_of(run: Records) -> list[Point]:
    """Give a point for each profile that has both an accuracy and a median latency."""
    places = run.places()
    points = []
    for profile in run.profiles:
        latency, top1 = profile["latency_ms"], profile["top1"]
        if latency["p50"] is None or top1 is None:
            continue
        role, place = profile["role"], (profile["device"], profile["precision"])
        label, shape = ROLES[role], _SHAPES[role]
        if len(places) > 1:
            label, shape = f"{label} {' '.join(place)}", _PLACE_SHAPES[places.index(place) % len(_PLACE_SHAPES)]
        high = latency["p50"] if latency["p90"] is None else latency["p90"]
        points.append(Point(role, label, latency["p50"], high, top1, profile["verdict"], shape))
    return points


def curves_of(run: Records) -> list[Curve]:
    """Give a curve for each role whose epochs were tested on the held-out split."""
    curves = []
    for role, epochs in run.curves.items():
        tested = [(e["epoch"], e["heldout_top1"]) for e in epochs if e["heldout_top1"] is not None]
        if tested:
            numbers, top1 = map(list, zip(*tested, strict=True))
            curves.append(Curve(role, ROLES[role], numbers, top1, run.records.get(role, {}).get("selected_epoch")))
    return curves


def scatter_figure(points: Sequence[Point]) -> dict[str, Any]:
    """Build plotly's figure of accuracy against latency: filled if VALID, hollow if WARN, a cross if INVALID."""
    labelled = _has_room(points)
    traces = [
        {
            "type": "scatter",
            "mode": "markers+text" if labelled else "markers",
            "name": html.escape(_marked(point)),
            "x": [point.p50_ms],
            "y": [point.top1],
            "text": [html.escape(_marked(point))],
            "textposition": "bottom center" if point.role == "undistilled" else "top center",
            "cliponaxis": False,
            "marker": {
                "size": 13,
                "symbol": _symbol(point),
                "color": _COLOURS[point.role],
                "line": {"width": 2, "color": _COLOURS[point.role]},
            },
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [point.high_ms - point.p50_ms],
                "arrayminus": [0],
                "thickness": 1.5,
                "width": 5,
            },
            "hovertemplate": f"{html.escape(_marked(point))}<br>p50 {milliseconds(point.p50_ms)} ms"
            f"<br>p90 {milliseconds(point.high_ms)} ms<br>top-1 {percent(point.top1)}<extra></extra>",
        }
        for point in points
    ]
    low, high = _limits(points)
    layout = _layout(_X_LATENCY, _Y_TEST)
    layout["xaxis"] |= {"range": [0, _right(points)]}
    layout["yaxis"] |= {"range": [low, high]}
    return {"data": traces, "layout": {**layout, "showlegend": not labelled}}


def curves_figure(curves: Sequence[Curve]) -> dict[str, Any]:
    """Build plotly's figure of held-out accuracy by epoch; the selected epoch is ringed."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": html.escape(curve.label),
            "x": curve.epochs,
            "y": curve.heldout_top1,
            "line": {"color": _COLOURS[curve.role], "width": 2},
            "marker": {
                "symbol": _SHAPES[curve.role][0],
                "opacity": 1,  # plotly makes marks of several sizes see-through
                "line": {"width": 0},
                "size": [11 if epoch == curve.selected_epoch else 5 for epoch in curve.epochs],
            },
            "hovertemplate": "%{y:.2f} %<extra>" + html.escape(curve.label) + "</extra>",
        }
        for curve in curves
    ]
    return {"data": traces, "layout": {**_layout(_X_EPOCH, _Y_HELDOUT), "hovermode": "x unified"}}


def write_png(path: Path, title: str, points: Sequence[Point], curves: Sequence[Curve]) -> None:
    """Draw both pictures side by side; a picture without data says so."""
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2)
    _draw_scatter(left, points)
    _draw_curves(right, curves)
    figure.savefig(path, format="png")


def _draw_scatter(axes: Axes, points: Sequence[Point]) -> None:
    if not points:
        _say(axes, "no latency measured yet")
        return
    for point in points:
        marker = "x" if point.verdict == "INVALID" else point.shape[1]
        axes.errorbar(
            point.p50_ms,
            point.top1,
            xerr=[[0.0], [point.high_ms - point.p50_ms]],
            color=_COLOURS[point.role],
            marker=marker,
            markersize=9,
            markerfacecolor=_COLOURS[point.role] if point.verdict == "VALID" else "none",
            capsize=3,
            label=_marked(point),
        )
        if _has_room(points):
            _name(axes, point)
    if not _has_room(points):
        for text in axes.legend(fontsize="x-small", loc="best").get_texts():
            text.set_parse_math(False)
    axes.set(xlabel=_X_LATENCY, ylabel=_Y_TEST, xlim=(0, _right(points)), ylim=_limits(points))
    axes.grid(alpha=0.3)


def _name(axes: Axes, point: Point) -> None:
    below = point.role == "undistilled"
    axes.annotate(
        _marked(point),
        (point.p50_ms, point.top1),
        xytext=(0, -10 if below else 10),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        parse_math=False,
    )


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    if not curves:
        _say(axes, "no training curves")
        return
    for curve in curves:
        marked = [i for i, epoch in enumerate(curve.epochs) if epoch == curve.selected_epoch]
        marker = _SHAPES[curve.role][1]
        axes.plot(
            curve.epochs,
            curve.heldout_top1,
            color=_COLOURS[curve.role],
            marker=marker,
            markevery=marked,
            label=curve.label,
        )
    axes.set(xlabel=_X_EPOCH, ylabel=_Y_HELDOUT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def _say(axes: Axes, words: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center")


def _marked(point: Point) -> str:
    return point.label if point.verdict == "VALID" else f"{point.label} ({point.verdict})"


def _has_room(points: Sequence[Point]) -> bool:
    """Whether names fit beside the points; else a legend has them."""
    return len(points) <= len(ROLES)


def _symbol(point: Point) -> str:
    shape = point.shape[0]
    return {"VALID": shape, "WARN": f"{shape}-open", "INVALID": "x-thin-open"}[point.verdict]


def _right(points: Sequence[Point]) -> float:
    """End of the latency axis: it starts at 0, so that lengths compare, and leaves room for the rightmost label."""
    return 1.2 * max((point.high_ms for point in points), default=1.0)


def _limits(points: Sequence[Point]) -> tuple[float, float]:
    """Ends of the accuracy axis: it does not start at 0, or the points of one recipe would lie on a line."""
    values = [point.top1 for point in points] or [0.0, 100.0]
    margin = max(0.3 * (max(values) - min(values)), 0.5)
    return min(values) - margin, max(values) + margin


def _layout(x_title: str, y_title: str) -> dict[str, Any]:
    """Colours of text and lines are the page's: its style sheet sets them for light, dark and print."""
    axis = {"gridcolor": _GRID, "zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 50, "r": 20, "t": 20, "b": 50},
        "xaxis": {**axis, "title": {"text": x_title}},
        "yaxis": {**axis, "title": {"text": y_title}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    }
