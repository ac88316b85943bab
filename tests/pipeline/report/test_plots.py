"""The pictures: plotly and matplotlib take them, and they hold the records' numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import pytest
from matplotlib.image import imread

from pipeline.report.candidates import candidates_of
from pipeline.report.drawings import write_drawings
from pipeline.report.picture_data import NUM_BARS, ROLE_COLOURS, curves_of, loss_curves_of
from pipeline.report.plots import bar_figures, curves_figure, loss_figures, scatter_figures
from pipeline.report.tradeoff import standings
from tests.pipeline.report.making import candidate, put_losses, whole_run

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.report.candidates import Candidate
    from tests.pipeline.conftest import HandMadeRun


def scatter(candidates: list[Candidate], view: str = "model", **options: Any) -> dict[str, Any]:
    figure = scatter_figures(candidates, standings(candidates), **options)[view]
    go.Figure(figure)  # raises on what plotly does not know
    return figure


def points(figure: dict[str, Any]) -> list[dict[str, Any]]:
    return [trace for trace in figure["data"] if "customdata" in trace]


def named(figure: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [trace for trace in figure["data"] if trace["name"] == name]


def test_scatter_holds_the_profiles_numbers(made: HandMadeRun) -> None:
    figure = scatter(candidates_of([made.records()]))
    assert [(t["x"], t["y"]) for t in points(figure)] == [([1.5], [89.5]), ([0.6], [86.4]), ([0.61234567], [85.2])]
    assert [t["error_x"]["array"] for t in points(figure)] == [[0.0]] * 3  # no interval in these records
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 85.2
    assert high > 89.5
    left, right = figure["layout"]["xaxis"]["range"]
    assert left == 0
    assert right > 1.5


def test_whiskers_are_the_intervals_ends() -> None:
    (trace,) = points(scatter([candidate(80.0, 2.0, spread=0.1, right=1.5)]))
    ends = [trace[axis][end][0] for axis in ("error_x", "error_y") for end in ("arrayminus", "array")]
    assert ends == pytest.approx([0.2, 0.2, 1.5, 1.5])


def test_colours_tell_series_apart_and_shapes_precision_and_verdict() -> None:
    pool = [
        candidate(80.0, 1.0, precision="fp32"),
        candidate(80.0, 1.1, precision="fp16", verdict="WARN"),
        candidate(80.0, 1.2, precision="int8", verdict="INVALID", device="orin"),
    ]
    figures = scatter_figures(pool, standings(pool))
    assert set(figures) == {"model", "precision", "device"}  # one student, one method, one recipe
    assert [trace["name"] for trace in points(figures["precision"])] == ["fp32", "fp16", "int8"]
    assert [trace["marker"]["symbol"] for trace in points(figures["precision"])] == [
        *(["circle"], ["square-open"], ["x-thin-open"])
    ]
    assert len({trace["marker"]["color"] for trace in points(figures["precision"])}) == 3
    assert [len(trace["x"]) for trace in points(figures["device"])] == [2, 1]
    legend = [trace["name"] for trace in figures["device"]["data"] if trace.get("showlegend", True)]
    assert legend[-2:] == ["local", "orin"]


def test_students_and_methods_are_series_where_there_are_several() -> None:
    pool = [candidate(80.0, 1.0, arch="small"), candidate(80.0, 2.0, arch="large", method="kd", recipe="other")]
    assert set(scatter_figures(pool, standings(pool))) == {"model", "student", "method", "recipe"}
    names = [trace["name"] for trace in points(scatter(pool, "student"))]
    assert names == ["distilled small (afpkd)", "distilled large (kd)"]


def test_the_front_is_drawn_as_steps_and_the_recommended_is_ringed() -> None:
    pool = [candidate(80.0, 2.0), candidate(70.0, 1.0), candidate(60.0, 3.0)]
    figure = scatter(pool, chosen=pool[:1])
    (front,) = named(figure, "front")
    assert (front["x"], front["y"], front["line"]["shape"]) == ([1.0, 2.0], [70.0, 80.0], "hv")
    (ring,) = named(figure, "recommended")
    assert (ring["x"], ring["y"]) == ([2.0], [80.0])
    assert named(scatter(pool), "recommended") == []
    apart = [pool[0], candidate(82.0, 1.0, conditions={"threads": "8", "clocks": "as-is"})]
    fronts = named(scatter(apart), "front, local")
    assert [front["x"] for front in fronts] == [[2.0], [1.0]], "no line joins what was measured by other rules"


def test_latencies_far_apart_get_a_logarithmic_axis() -> None:
    axis = scatter([candidate(80.0, 0.1), candidate(80.0, 10.0)])["layout"]["xaxis"]
    assert axis["type"] == "log"
    assert axis["range"][0] < -1  # 0.1 ms
    assert axis["range"][1] > 1
    assert "type" not in scatter([candidate(80.0, 1.0), candidate(80.0, 10.0)])["layout"]["xaxis"]


def test_a_crowd_has_no_names_and_no_whiskers() -> None:
    crowd = [candidate(50.0 + i, 1.0 + i) for i in range(61)]
    (trace,) = points(scatter(crowd))
    assert "error_x" not in trace
    assert trace["mode"] == "markers"
    (trace,) = points(scatter(crowd[:12]))
    assert trace["mode"] == "markers+text"
    assert "error_x" in trace


def test_bars_hold_p50_p90_and_accuracy_with_their_intervals() -> None:
    slow, fast = candidate(80.0, 2.0), candidate(70.0, 1.0, verdict="INVALID", right=3.0)
    figure = bar_figures([slow, fast], standings([slow, fast]))["local"]
    go.Figure(figure)
    bars, tails, dots = figure["data"]
    assert (bars["x"], tails["x"], dots["x"]) == ([1.0, 2.0], [1.5, 3.0], [70.0, 80.0])
    assert bars["error_x"]["array"] == pytest.approx([0.01, 0.02])
    assert dots["error_x"]["arrayminus"] == pytest.approx([3.0, 0.1])
    assert figure["layout"]["yaxis"]["ticktext"] == ["distilled net (afpkd), fp32 (INVALID)", slow.file]
    assert bars["marker"]["opacity"] == [0.35, 1.0]


def test_bars_of_many_keep_the_front() -> None:
    best = candidate(99.0, 50.0)  # the slowest of all, and on the front
    crowd = [candidate(10.0 - 0.1 * i, 1.0 + i, recipe=f"r{i}") for i in range(40)]
    pool = [*crowd, best]
    (bars, _, _) = bar_figures(pool, standings(pool))["local"]["data"]
    assert len(bars["x"]) == NUM_BARS
    assert bars["x"][-1] == 50.0


def test_curves_hold_the_epochs_and_mark_the_selected_one(made: HandMadeRun) -> None:
    figure = curves_figure(curves_of(made.records()))
    go.Figure(figure)
    for trace in figure["data"]:
        assert (trace["x"], trace["y"]) == ([1, 2, 3], [81.0, 82.0, 83.0])
        assert trace["marker"]["size"].index(max(trace["marker"]["size"])) == 1  # epoch 2
    assert '"x": [0.6]' in made.report().page().scripts[-1]


def test_each_loss_term_has_its_curves(made: HandMadeRun) -> None:
    put_losses(made)
    curves = loss_curves_of(made.records())
    assert {term: [curve.role for curve in found] for term, found in curves.items()} == {
        "task": ["student", "undistilled"],
        "frequency <b>": ["student"],
    }
    figures = loss_figures(curves)
    go.Figure(figures["task"])
    student, undistilled = figures["task"]["data"]
    assert (student["x"], student["y"]) == ([1, 2, 3], [2.0, 1.0, 0.5])
    assert undistilled["y"] == [3.0, 1.5, 0.75]
    assert undistilled["line"]["color"] == ROLE_COLOURS["undistilled"]
    assert figures["task"]["layout"]["yaxis"]["title"]["text"] == "loss"
    page = made.report().page()
    assert "Loss “frequency <b>”" in page.text
    assert ("div", "losses") in [(tag, found.get("data-figure")) for tag, found in page.tags]
    assert [found["data-view"] for _, found in page.tags if found.get("data-figure") == "losses"] == list(curves)


def test_runs_without_loss_terms_show_none(made: HandMadeRun) -> None:
    assert loss_curves_of(made.records()) == {}
    assert "Loss “" not in made.report().page().text


def test_hostile_device_name_stays_text(made: HandMadeRun) -> None:
    for role in ("teacher", "student"):  # enough points for a legend
        made.put_profile(role, "odd", device="<a href='//x'>$\\frac$</a>")
    assert "<a" not in made.report().page().scripts[-1]  # and matplotlib does not take $...$ for a formula
    traces = scatter(candidates_of([made.records()]), "device")["data"]
    labels = [trace["name"] for trace in traces] + [said for trace in traces for said in trace.get("customdata", [])]
    assert any("&lt;a href=" in label for label in labels)  # plotly would make a link of the tag itself
    assert not any("<a" in label for label in labels)


def test_drawings_are_drawn_and_say_what_they_lack(made: HandMadeRun, tmp_path: Path) -> None:
    run = made.records()
    full, empty = [tmp_path / "full.png", tmp_path / "full.svg"], [tmp_path / "empty.png", tmp_path / "empty.svg"]
    found = candidates_of([run])
    write_drawings(full, "tiny $x", found, standings(found), curves_of(run))
    write_drawings(empty, "tiny $x", [], [], [])
    full_pixels, empty_pixels = imread(full[0]), imread(empty[0])
    assert full_pixels.shape == empty_pixels.shape == (690, 1650, 4)
    ink = [float((pixels[..., :3] < 0.5).any(axis=-1).mean()) for pixels in (full_pixels, empty_pixels)]
    assert ink[0] > 3 * ink[1] > 0
    assert "no latency measured yet" in empty[1].read_text()
    svg = full[1].read_text()
    assert all(words in svg for words in ("tiny $x", "median latency (ms)", "distilled", "held-out accuracy (%)"))


def test_the_drawing_of_several_recipes_has_bars(tmp_path: Path) -> None:
    runs = [whole_run(tmp_path / name, devices={"local": 1.0}).records() for name in ("one", "two")]
    found = candidates_of(runs)
    write_drawings([tmp_path / "x.svg"], "two", found, standings(found), [])
    assert "median latency on local (ms)" in (tmp_path / "x.svg").read_text()
