"""The pictures of the page, for plotly: accuracy against latency, bars with intervals, accuracy by epoch."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from afpkd.names import in_words
from pipeline.report.candidates import Candidate, Estimate
from pipeline.report.picture_data import (
    NUM_LABELLED,
    OTHER_SHAPE,
    PALETTE,
    ROLE_COLOURS,
    SHAPES,
    X_EPOCH,
    X_LATENCY,
    Y_HELDOUT,
    Y_LOSS,
    Curve,
    Series,
    accuracy_axis,
    accuracy_range,
    barred,
    front_lines,
    has_whiskers,
    is_wide,
    latency_range,
    series_of,
    short_name,
)
from pipeline.report.tradeoff import Standing, standing_by_key
from pipeline.report.wording import ROLES, milliseconds, percent, span

_GRID = "rgba(128,128,128,0.25)"

Figure = dict[str, Any]


def scatter_figures(
    candidates: Sequence[Candidate], standing: Sequence[Standing], chosen: Sequence[Candidate] = ()
) -> dict[str, Figure]:
    """Build a figure of accuracy against latency for each way to colour it, by its name. chosen: to be ringed."""
    layout = _scatter_layout(candidates)
    fronts = [*_front_traces(candidates, standing), *([_ring(chosen)] if chosen else [])]
    return {
        name: {"data": [*fronts, *_point_traces(name, way, candidates)], "layout": layout}
        for name, way in series_of(candidates).items()
    }


def bar_figures(candidates: Sequence[Candidate], standing: Sequence[Standing]) -> dict[str, Figure]:
    """Build for each device the bars of p50 (mark: p90) with its interval, and beside them accuracy with its own."""
    places = standing_by_key(candidates, standing)
    figures = {}
    for device in dict.fromkeys(c.device for c in candidates):
        figures[device] = _bars(barred([c for c in candidates if c.device == device], places))
    return figures


def loss_figures(curves: Mapping[str, Sequence[Curve]]) -> dict[str, Figure]:
    """Build a figure of each loss term by epoch."""
    return {term: curves_figure(found, Y_LOSS, "%{y:.4g}") for term, found in curves.items()}


def curves_figure(curves: Sequence[Curve], y_title: str = Y_HELDOUT, said: str = "%{y:.2f} %") -> Figure:
    """Build plotly's figure of held-out accuracy, or a loss, by epoch; the selected epoch has a larger mark."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": html.escape(curve.label),
            "x": curve.epochs,
            "y": curve.values,
            "line": {"color": ROLE_COLOURS[curve.role], "width": 2},
            "marker": {
                "opacity": 1,  # plotly makes marks of several sizes see-through
                "line": {"width": 0},
                "size": [11 if epoch == curve.selected_epoch else 5 for epoch in curve.epochs],
            },
            "showlegend": True,
            "hovertemplate": said + "<extra>" + html.escape(curve.label) + "</extra>",
        }
        for curve in curves
    ]
    return {"data": traces, "layout": {**_layout(X_EPOCH, y_title), "hovermode": "x unified"}}


def _point_traces(name: str, way: Series, candidates: Sequence[Candidate]) -> list[Figure]:
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(way(candidate), []).append(candidate)
    colours = {ROLES[role]: colour for role, colour in ROLE_COLOURS.items()} if name == "model" else {}
    labelled, whiskers = len(candidates) <= NUM_LABELLED, has_whiskers(candidates)
    traces = []
    for i, (label, members) in enumerate(groups.items()):
        colour = colours.get(label, PALETTE[i % len(PALETTE)])
        traces += [_points(name, label, members, colour, labelled, whiskers), _legend_entry(label, colour)]
    return traces


def _legend_entry(label: str, colour: str) -> Figure:
    """A plain dot: the series' own first mark may be a cross. A click on it hides the series."""
    name = html.escape(label)
    marker = {"color": colour, "size": 9, "symbol": "circle"}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "x": [None],
        "y": [None],
        "marker": marker,
    }


def _points(way: str, label: str, members: Sequence[Candidate], colour: str, labelled: bool, whiskers: bool) -> Figure:
    faint = {"color": colour, "thickness": 1, "width": 3}
    bars = {
        "error_x": {**_whisker([c.p50_ms for c in members]), **faint},
        "error_y": {**_whisker([c.accuracy for c in members]), **faint},
    }
    return {
        "type": "scatter",
        "mode": "markers+text" if labelled else "markers",
        "name": html.escape(label),
        "x": [c.p50_ms.value for c in members],
        "y": [c.accuracy.value for c in members],
        "text": [html.escape(short_name(way, c)) for c in members] if labelled else [],
        "textposition": ["bottom right" if c.role == "undistilled" else "top right" for c in members],
        "legendgroup": html.escape(label),
        "showlegend": False,
        "textfont": {"size": 11},
        "cliponaxis": False,
        "marker": {
            "size": 11 if labelled else 8,
            "symbol": [_symbol(c) for c in members],
            "color": colour,
            "line": {"width": 2, "color": colour},
        },
        **(bars if whiskers else {}),
        "customdata": [_said(c) for c in members],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _whisker(estimates: Sequence[Estimate]) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if e.high is None else e.high - e.value for e in estimates],
        "arrayminus": [0.0 if e.low is None else e.value - e.low for e in estimates],
    }


def _front_traces(candidates: Sequence[Candidate], standing: Sequence[Standing]) -> list[Figure]:
    """Each front as steps: nothing that compares lies above and left of them."""
    fronts = front_lines(candidates, standing)
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front" if len(fronts) == 1 else html.escape(f"front, {device}"),
            "showlegend": len(fronts) == 1,
            "x": [c.p50_ms.value for c in front],
            "y": [c.accuracy.value for c in front],
            "line": {"shape": "hv", "width": 1.5, "dash": "dot", "color": "#7d8590"},
            "hoverinfo": "skip",
        }
        for (_, device, *_), front in fronts.items()
    ]


def _ring(chosen: Sequence[Candidate]) -> Figure:
    marker = {"symbol": "circle-open", "size": 24, "color": "#1f9a6b", "line": {"width": 2.5, "color": "#1f9a6b"}}
    x, y = [c.p50_ms.value for c in chosen], [c.accuracy.value for c in chosen]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "recommended",
        "x": x,
        "y": y,
        "marker": marker,
        "hoverinfo": "skip",
    }


def _said(c: Candidate) -> str:
    """What a point says when pointed at."""
    lines = [
        c.file_there,
        f"{in_words(c.metric)} {percent(c.accuracy.value)} {_interval(c.accuracy, 1)}",
        f"p50 {milliseconds(c.p50_ms.value)} ms {_interval(c.p50_ms, 3)}",
        *([f"p90 {milliseconds(c.p90_ms.value)} ms"] if c.p90_ms else []),
        c.verdict,
    ]
    return "<br>".join(html.escape(line.strip()) for line in lines)


def _interval(estimate: Estimate, digits: int) -> str:
    words = span(estimate.low, estimate.high, digits)
    return f"({words})" if words else ""


def _symbol(c: Candidate) -> str:
    shape = SHAPES.get(c.precision, OTHER_SHAPE)[0]
    return {"VALID": shape, "WARN": f"{shape}-open", "INVALID": "x-thin-open"}[c.verdict]


def _scatter_layout(candidates: Sequence[Candidate]) -> Figure:
    layout = _layout(X_LATENCY, accuracy_axis(candidates))
    low, high = latency_range(candidates)
    if is_wide(candidates):
        layout["xaxis"] |= {"type": "log", "range": [math.log10(low), math.log10(high)], "dtick": 1}
    else:
        layout["xaxis"] |= {"range": [low, high]}
    layout["yaxis"] |= {"range": list(accuracy_range(candidates))}
    return layout


def _bars(group: Sequence[Candidate]) -> Figure:
    """One row a candidate, the fastest on top."""
    names = [html.escape(f"{c.file} ({c.verdict})" if c.verdict != "VALID" else c.file) for c in group]
    rows = list(range(len(group)))
    colours = [ROLE_COLOURS[c.role] for c in group]
    hover: Figure = {"customdata": [_said(c) for c in group], "hovertemplate": "%{customdata}<extra></extra>"}
    ink: Figure = {"color": "#7d8590", "thickness": 1.5, "width": 4}
    bars = {
        **{"type": "bar", "orientation": "h", "name": "p50", "y": rows, "x": [c.p50_ms.value for c in group]},
        "marker": {"color": colours, "opacity": [1.0 if c.is_usable else 0.35 for c in group]},
        "error_x": {**_whisker([c.p50_ms for c in group]), **ink},
        **hover,
    }
    tails = {
        **{"type": "scatter", "mode": "markers", "name": "p90", "y": rows},
        "x": [c.p90_ms.value if c.p90_ms else None for c in group],
        "marker": {"symbol": "line-ns-open", "size": 14, "color": colours, "line": {"width": 2, "color": colours}},
        **hover,
    }
    dots = {
        **{"type": "scatter", "mode": "markers", "name": "accuracy", "y": rows, "x": [c.accuracy.value for c in group]},
        "xaxis": "x2",
        "marker": {"color": colours, "size": 9},
        "error_x": {**_whisker([c.accuracy for c in group]), **ink},
        **hover,
    }
    layout = _layout("p50, mark: p90 (ms)", "")
    layout["xaxis"] |= {"domain": [0, 0.56], "rangemode": "tozero"}
    layout["xaxis2"] = {
        **layout["xaxis"],
        "domain": [0.62, 1],
        "rangemode": "normal",
        "title": {"text": accuracy_axis(group)},
    }
    layout["yaxis"] |= {"tickvals": rows, "ticktext": names, "autorange": "reversed", "showgrid": False}
    layout["yaxis"]["ticklabelstandoff"] = 6
    layout |= {"showlegend": False, "bargap": 0.45, "height": 110 + 26 * len(group)}
    return {"data": [bars, tails, dots], "layout": layout}


def _layout(x_title: str, y_title: str) -> Figure:
    """Colours of text and lines are the page's: its style sheet sets them for light, dark and print."""
    axis = {"gridcolor": _GRID, "zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 50, "r": 20, "t": 40, "b": 50},
        "xaxis": {**axis, "title": {"text": x_title}},
        "yaxis": {**axis, "title": {"text": y_title}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    }
