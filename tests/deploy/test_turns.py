"""Several files, several processes, several scenarios: who is measured when, and what becomes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afpkd.errors import UserError
from deploy import jobs, presets
from deploy.agent.measuring import STEPS
from deploy.devices import find_device
from deploy.measure import Wanted, profile_files
from deploy.presets import Preset, WarmUp, find_preset
from deploy.statistics import latency_ms, of_runs, spread_percent
from deploy.target import DeviceError
from pipeline.record_keys import PROFILE
from tests.deploy.conftest import HandMadeBundle
from tests.deploy.test_measure import as_int8
from tests.record_tables import untold

WARM_UP = WarmUp(min_seconds=0, min_count=30, window=10, tolerance=1e9, max_seconds=10)
THREE = Preset(name="three", min_seconds=0, min_count=200, warm_up=WARM_UP, repeats=3)


def profiled(bundle: HandMadeBundle, folder: Path, precisions: list[str], **how: Any) -> list[dict[str, Any]]:
    wanted = [Wanted(bundle.folder, precision, folder / f"{precision}.json") for precision in precisions]
    arguments = {"device": "local", "preset": "three", "threads": 1, "recipe": "r", "config_digest": "d", **how}
    return profile_files(wanted, **arguments)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets._PRESETS, "three", THREE)


@pytest.mark.usefixtures("three")
def test_files_take_turns_each_time_in_a_fresh_process(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_int8(bundle)
    asked: list[tuple[str, str, int, bool]] = []
    run = jobs.run_job

    def noted(target: Any, work: Any, progress: Any) -> Any:
        request = work.request
        asked.append((request["precision"], request["mode"], request["turn"], request["evaluate"]))
        return run(target, work, progress)

    monkeypatch.setattr("deploy.turns.run_job", noted)
    told: list[tuple[str, int, int]] = []
    fp32, int8 = profiled(bundle, tmp_path, ["fp32", "int8"], progress=lambda *event: told.append(event))
    steps = [event for event in told if event[2]]
    assert {total for _, _, total in steps} == {9 * STEPS}  # of all nine processes
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert ("5 of 9: measuring", 4 * STEPS + 1, 9 * STEPS) in steps
    assert steps[-1] == ("9 of 9: measured", 9 * STEPS, 9 * STEPS)
    assert [one[2] for one in asked] == [1, 1, 1, 2, 2, 2, 3, 3, 3]  # every file before any has its next turn
    for turn in range(3):
        assert {one[:2] for one in asked[3 * turn : 3 * turn + 3]} == {
            ("fp32", "default"),
            ("int8", "default"),
            ("int8", "precise"),
        }
    assert [one[3] for one in asked] == [True] * 3 + [False] * 6  # accuracy does not change from process to process
    for record in (fp32, int8):
        assert (record["num_runs"], len(record["runs"]), record["n"]) == (3, 3, 600)
        medians = [one["latency_ms"]["p50"] for one in record["runs"]]
        assert record["latency_ms"]["p50"] == np.median(medians)
        assert record["latency_ms"]["p50_lo"] == min(one["latency_ms"]["p50_lo"] for one in record["runs"])
        assert record["latency_ms"]["p50_hi"] == max(one["latency_ms"]["p50_hi"] for one in record["runs"])
        assert record["spread_percent"] == pytest.approx(spread_percent(medians))
        assert len({one["first_inference_ms"] for one in record["runs"]}) == 3
    assert fp32["top1"] is not None
    with np.load(tmp_path / "int8.npz") as arrays:
        names = {"samples_ns", "samples_ns_2", "samples_ns_3", "samples_ns_precise", "samples_ns_precise_3"}
        assert names <= set(arrays)
        tables = [latency_ms(arrays[name]) for name in ("samples_ns", "samples_ns_2", "samples_ns_3")]
    assert int8["latency_ms"] == of_runs(tables)


@pytest.mark.usefixtures("three")
def test_a_sweep_is_a_row_a_power_mode_and_names_those_it_had_to_leave_out(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board's answers are made up, and that mode 0 is taken; the jobs are real, and this machine has no mode 3."""

    def taken(work: Any, run: Callable[[Any], Any]) -> Any:
        if work.clocks != "mode:0":
            return run(work)
        return {**run(dataclasses.replace(work, clocks="as-is")), "clocks": "mode:0"}

    asked = sweeping(monkeypatch, taken)
    told: list[tuple[str, int, int]] = []
    (record,) = profiled(bundle, tmp_path, ["fp32"], progress=lambda *event: told.append(event))
    assert asked == ["as-is"] * 3 + ["mode:0"] * 3 + ["mode:3"]  # as it is first: it may not come back
    assert [row["clocks"] for row in record["rows"]] == ["as-is", "mode:0"]
    assert not [reason for row in record["rows"] for reason in row["reasons"] if reason.startswith("clocks")]
    why = "power mode 3 left out: device local: this machine has no power modes (nvpmodel): set clocks = as-is"
    assert record["left_out"] == [why]
    assert untold(record, PROFILE) == []
    steps = [event[1:] for event in told if event[2]]
    assert {total for _, total in steps} == {9 * STEPS}
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert told[-1] == (why, 0, 0)
    with np.load(tmp_path / "fp32.npz") as arrays:
        assert {"samples_ns", "samples_ns_3", "samples_ns_power_mode_0", "samples_ns_power_mode_0_3"} <= set(arrays)


@pytest.mark.usefixtures("instant")
def test_a_sweep_ends_with_any_other_failure(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def failing(work: Any, run: Callable[[Any], Any]) -> Any:
        if work.clocks != "as-is":
            raise DeviceError("local", "E_OOM", "killed")
        return run(work)

    asked = sweeping(monkeypatch, failing)
    with pytest.raises(DeviceError, match="killed"):
        profiled(bundle, tmp_path, ["fp32"], preset="instant")
    assert asked == ["as-is", "mode:0"]


@pytest.mark.usefixtures("instant")
def test_a_power_mode_in_which_the_file_breaks_is_named_and_no_mode_of_the_runtime_is_blamed(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def breaking(work: Any, run: Callable[[Any], Any]) -> Any:
        answer = run(dataclasses.replace(work, clocks="as-is"))
        if work.clocks == "mode:0":
            answer["golden"]["before"]["ok"] = False
        return answer

    sweeping(monkeypatch, breaking, modes=(0, 2))
    (record,) = profiled(bundle, tmp_path, ["fp32"], preset="instant")
    assert "power mode: the golden check fails in power mode 0" in record["rows"][0]["reasons"]
    assert "saturate" not in str(record["rows"])
    assert record["rows"][1]["reasons"][0].startswith("golden mismatch")


def test_a_sweep_of_a_machine_without_power_modes_is_refused(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeping(monkeypatch, modes=())
    with pytest.raises(UserError, match="device local: clocks = sweep, but it has no power modes"):
        profiled(bundle, tmp_path, ["fp32"], preset="quick")


def sweeping(
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Any, Callable[[Any], Any]], Any] = lambda work, run: run(work),
    modes: tuple[int, ...] = (0, 2, 3),
) -> list[str]:
    """This machine as a board in power mode 2 of `modes` that is to be swept; give what clocks its jobs ask for.

    answer: (job, how to run one) -> its answer.
    """
    asked: list[str] = []
    real = jobs.run_job

    def run_job(target: Any, work: Any, progress: Any) -> Any:
        asked.append(work.clocks)
        return answer(work, lambda one: real(target, one, progress))

    monkeypatch.setattr("deploy.turns.run_job", run_job)
    facts = {"power_modes": [{"id": mode, "name": f"M{mode}"} for mode in modes], "power_mode": {"id": 2, "name": "M2"}}
    monkeypatch.setattr("deploy.measure.probe", lambda target: facts)
    found = find_device("local")
    monkeypatch.setattr("deploy.measure.find_device", lambda name: dataclasses.replace(found, clocks="sweep"))
    return asked


def test_the_order_changes_from_turn_to_turn() -> None:
    from deploy.turns import _turns

    turns = list(_turns(6, 3))
    orders = [[number for turn, number in turns if turn == wanted] for wanted in (1, 2, 3)]
    assert orders[0] == list(range(6))
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert list(_turns(6, 3)) == turns


def test_presets_that_are_quoted_take_three_processes() -> None:
    assert {name: find_preset(name).repeats for name in ("quick", "standard", "mlperf")} == {
        "quick": 1,
        "standard": 3,
        "mlperf": 3,
    }


def test_processes_that_disagree_are_told_and_a_percentile_one_of_them_lacks_is_none() -> None:
    fast, slow = (latency_ms(np.full(700, value, np.int64)) for value in (1_000_000, 1_200_000))
    combined = of_runs([fast, fast, slow])
    assert (combined["p50"], combined["p50_lo"], combined["p50_hi"], combined["max"]) == (1.0, 1.0, 1.2, 1.2)
    assert (combined["p99"], combined["p99_bound"]) == (1.0, 1.2)
    assert of_runs([fast, latency_ms(np.full(100, 10**6, np.int64))])["p99"] is None
    assert spread_percent([1.0, 1.0, 1.2]) == pytest.approx(20)


@pytest.mark.usefixtures("instant")
def test_scenarios_are_measured_when_asked_for(bundle: HandMadeBundle, tmp_path: Path) -> None:
    (record,) = profiled(bundle, tmp_path, ["fp32"], preset="instant", scenarios=("single_stream", "offline"))
    assert [(row["scenario"], row["batch"]) for row in record["rows"]] == [
        ("single_stream", 1),
        *(("offline", batch) for batch in (1, 2, 4, 8, 16, 32)),
    ]
    assert all(row["n"] == 40 for row in record["rows"][1:])


def test_frames_are_played_when_asked_for(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = dataclasses.replace(THREE, name="brief", repeats=1, min_seconds=0.5)
    monkeypatch.setitem(presets._PRESETS, "brief", brief)
    (record,) = profiled(bundle, tmp_path, ["fp32"], preset="brief", scenarios=("single_stream", "periodic"))
    assert [(row["fps"], row["n"]) for row in record["rows"]] == [(None, record["n"]), (30.0, 15), (60.0, 30)]
    assert len(record["timing"]["periodic"]["trials"]) >= 1
