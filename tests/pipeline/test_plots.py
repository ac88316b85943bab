"""The pictures: plotly and matplotlib take them, and they hold the records' numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
import pytest
from matplotlib.image import imread

from pipeline.plots import curves_figure, curves_of, points_of, scatter_figure, write_png

if TYPE_CHECKING:
    from pathlib import Path

    from tests.pipeline.conftest import HandMadeRun


def test_scatter_holds_the_profiles_numbers(made: HandMadeRun) -> None:
    figure = scatter_figure(points_of(made.records()))
    go.Figure(figure)  # raises on what plotly does not know
    assert [(t["x"], t["y"]) for t in figure["data"]] == [([1.5], [89.5]), ([0.6], [86.4]), ([0.61234567], [85.2])]
    assert [t["error_x"]["array"] for t in figure["data"]] == [[pytest.approx(0.25)]] * 3  # p90 - p50
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 85.2
    assert high > 89.5
    left, right = figure["layout"]["xaxis"]["range"]
    assert left == 0
    assert right > 1.75


def test_many_points_are_told_apart_by_shape_and_legend(made: HandMadeRun) -> None:
    assert scatter_figure(points_of(made.records()))["layout"]["showlegend"] is False
    for role in ("teacher", "student"):
        made.put_profile(role, "orin", device="orin")
    figure = scatter_figure(points_of(made.records()))
    go.Figure(figure)
    assert figure["layout"]["showlegend"] is True
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in figure["data"]}
    assert len(looks) == len(figure["data"]) == 5
    assert {trace["mode"] for trace in figure["data"]} == {"markers"}


def test_curves_hold_the_epochs_and_mark_the_selected_one(made: HandMadeRun) -> None:
    figure = curves_figure(curves_of(made.records()))
    go.Figure(figure)
    for trace in figure["data"]:
        assert (trace["x"], trace["y"]) == ([1, 2, 3], [81.0, 82.0, 83.0])
        assert trace["marker"]["size"].index(max(trace["marker"]["size"])) == 1  # epoch 2
    assert '"x": [0.6]' in made.report().page().scripts[-1]


def test_hostile_device_name_stays_text(made: HandMadeRun) -> None:
    for role in ("teacher", "student"):  # enough points for a legend
        made.put_profile(role, "odd", device="<a href='//x'>$\\frac$</a>")
    assert "<a" not in made.report().page().scripts[-1]  # and matplotlib does not take $...$ for a formula
    labels = [trace["text"][0] for trace in scatter_figure(points_of(made.records()))["data"]]
    labels += [trace["name"] for trace in scatter_figure(points_of(made.records()))["data"]]
    assert any("&lt;a href=" in label for label in labels)  # plotly would make a link of the tag itself
    assert not any("<" in label for label in labels)


def test_png_is_drawn_and_says_what_it_lacks(made: HandMadeRun, tmp_path: Path) -> None:
    run = made.records()
    full, empty = tmp_path / "full.png", tmp_path / "empty.png"
    write_png(full, "tiny $x", points_of(run), curves_of(run))
    write_png(empty, "tiny $x", [], [])
    full_pixels, empty_pixels = imread(full), imread(empty)
    assert full_pixels.shape == empty_pixels.shape == (690, 1650, 4)
    ink = [float((pixels[..., :3] < 0.5).any(axis=-1).mean()) for pixels in (full_pixels, empty_pixels)]
    assert ink[0] > 3 * ink[1] > 0
