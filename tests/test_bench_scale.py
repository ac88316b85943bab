"""The bench of cost growth: lines through known points, and every kind of point measured once, tiny."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import scale
from bench.scale_step import Levels, fitting_of
from tests.pipeline.conftest import hand_made_run

TINY = scale.Sizes(batches=(4, 8), sides=(16, 24), levels=(1, 2), profiles=(), recipes=(), steps=1)


def test_a_line_is_found_and_what_is_none_is_said() -> None:
    sizes = [1, 10, 100]
    straight = scale.line(sizes, [5 + 2 * size for size in sizes])
    assert (straight["slope"], straight["intercept"]) == pytest.approx((2, 5))
    assert straight["r_squared"] == pytest.approx(1)
    assert straight["deviation"] < 1e-9
    bent = scale.line(sizes, [size**2 for size in sizes])
    assert bent["deviation"] > 1
    assert bent["r_squared"] < 0.999
    points = [{"images": size, "seconds": 5.0 + 2 * size, "peak_bytes": size**2} for size in sizes]
    growth = scale.grown("images", iter(points))
    assert growth["lines"].keys() == {"seconds", "peak_bytes"}
    lines = scale.table({"step, batch": growth}).splitlines()
    assert lines[2] == "| step, batch | images | seconds | 7 | 205 | 2 | 1.0000 | 0% |"
    assert lines[3].endswith("(no straight line) |")


def test_a_flat_measurement_is_a_line() -> None:
    assert scale.line([1, 2, 3], [4, 4, 4])["r_squared"] == pytest.approx(1)


def test_a_step_is_measured_in_a_process_of_its_own() -> None:
    found = scale._fresh("step", 4, 16, 2, 1)
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 50e6


@pytest.mark.slow
def test_a_step_is_measured_against_all_that_makes_it_larger() -> None:
    found = scale.step_growth(TINY)
    assert {name: growth["against"] for name, growth in found.items()} == {
        "step, batch": "images",
        "step, resolution": "pixels",
        "step, levels": "levels",
    }
    assert [point["pixels"] for point in found["step, resolution"]["points"]] == [16 * 16, 24 * 24]
    for growth in found.values():
        assert all(point["seconds"] > 0 and point["peak_bytes"] > 50e6 for point in growth["points"])


def test_the_step_is_of_the_size_that_is_said(tmp_path: Path) -> None:
    fitting = fitting_of(tmp_path, batch=4, side=16, levels=3, steps=2)
    student = fitting.learner.product
    assert isinstance(student, Levels)
    images = fitting.next_images()
    assert images.shape == (4, 3, 16, 16)
    assert [feature.shape[-2:] for feature in student(images).features] == [(16, 16)] * 3
    assert fitting.advance() is None
    assert fitting.advance() is None  # no epoch ends, which would measure accuracy


def test_a_report_of_many_files_is_one_of_many_devices(tmp_path: Path) -> None:
    run = hand_made_run(tmp_path / "tiny")
    cost = scale.report_cost(run.folder, tmp_path, 7)
    assert cost["profiles"] == 7
    assert cost["seconds"] > 0
    assert cost["peak_bytes"] > 30e6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]  # nothing is left
