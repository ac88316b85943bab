"""The bench of our own clock: what it makes of rounds, and one small run of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afpkd.errors import UserError
from bench import measurement
from bench.student_files import exported
from deploy.measure_file import feeds_for


def record(p50: float, low: float, high: float) -> dict[str, Any]:
    """Of a run of which the first process alone gave a median known ten times better."""
    latency = {"p50": p50, "p50_lo": low, "p50_hi": high}
    alone = {"p50": p50, "p50_lo": p50 - (p50 - low) / 10, "p50_hi": p50 + (high - p50) / 10}
    return {"latency_ms": latency, "runs": [{"latency_ms": alone}], "verdict": "VALID"}


def test_rounds_are_compared_with_their_neighbours() -> None:
    ours = [record(1.0, 0.99, 1.01), record(2.0, 1.9, 2.1), record(2.04, 2.0, 2.2), record(1.5, 1.4, 2.0)]
    openvino = [{"ours_ms": 1.21, "inside_ms": 1.1, "tool_ms": 1.0}]
    found = measurement.findings(ours, bare=[1.0, 1.9, 2.04, 1.5], unwatched=[1.0, 2.0, 2.0, 1.5], openvino=openvino)
    assert found["against_bare_percent"] == 0  # the median of 0, +5.3, 0, 0: a machine that doubles is no difference
    assert found["observer_percent"] == pytest.approx(0)
    assert found["neighbours_agree_percent"] == pytest.approx(100 * 2 / 3)  # meeting at an end is meeting
    assert found["single_processes_agree_percent"] == 0
    assert found["against_openvino_percent"] == pytest.approx(10)
    assert found["around_openvino_percent"] == pytest.approx(10)
    assert found["added_percent"] == pytest.approx(100 * found["added_ns"] / 1.75e6)
    assert measurement.findings(ours[:1], [1.0], [1.0], [])["against_openvino_percent"] is None


def test_reading_the_clock_costs_less_than_ten_microseconds() -> None:
    assert 0 < measurement.clock_cost_ns() < 10_000


def test_the_table_says_what_was_not_run() -> None:
    found = measurement.findings([record(1.0, 0.9, 1.1)] * 2, [1.0, 1.02], [1.0, 1.0], [])
    shown = measurement.table({**found, "model": "m.onnx", "rounds": 2, "seconds": 5.0, "verdicts": ["VALID", "WARN"]})
    assert "| median against a bare ONNX Runtime loop | within 3 % | -0.98 % |" in shown
    assert "| OpenVINO in our loop against its benchmark_app | within 3 % | not run |" in shown
    assert "m.onnx, 2 rounds of 5 s: 1 VALID, 1 WARN." in shown


def test_a_small_run_measures_every_way(tmp_path: Path) -> None:
    model = exported("resnet8", tmp_path)
    asked = measurement._asked([str(model), "--rounds", "2", "--seconds", "0.2"])
    found = measurement.results(model, asked, tmp_path)
    assert [len(found[key]) for key in ("ours_ms", "bare_ms", "unwatched_ms", "intervals_ms", "verdicts")] == [2] * 5
    assert found["openvino_ms"] == []
    assert min(found["bare_ms"]) > 0
    assert 0.2 < found["ours_ms"][0] / found["bare_ms"][0] < 5  # the same network in the same unit


def test_a_tool_that_fails_is_one_line(tmp_path: Path) -> None:
    model = exported("resnet8", tmp_path)
    asked = measurement._asked([str(model), "--rounds", "1", "--seconds", "0.1"])
    np.savez(tmp_path / "inputs.npz", input=feeds_for(model, None, {}).inputs["input"])
    with pytest.raises(UserError, match="No module named 'openvino'"):
        measurement.openvino_round(Path(sys.executable), model, tmp_path, asked)
