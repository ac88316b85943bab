"""What the agent answered becomes rows: of several processes, of scenarios, each judged by what happened to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.presets import find_preset
from deploy.profile_record import facts_of, write_profile
from deploy.rows import ONE_PROCESS, About, rows_of
from deploy.runs import QUANTITIES, Run, quantities_ms

ABOUT = About(
    device="d",
    role="student",
    precision="fp32",
    runtime="x",
    threads=0,
    macs=1,
    num_params=1,
    size_bytes=1,
    labels=None,
)


def run_of(samples: np.ndarray[Any, Any], **arrays: np.ndarray[Any, Any]) -> Run:
    answer = {
        "golden": {"before": {"ok": True}, "after": {"ok": True}},
        "timing": {"num_inputs": 64},
        "machine": {"num_cpus": 2},
        "runtime": {"name": "x", "threads": 2},
        "clocks": "as-is",
        "mode": "default",
        "state": {"names": [], "windows_ns": {}, "rate_hz": None, "cpu_s": None},
    }
    return Run(
        dataclasses.replace(find_preset("standard"), min_count=100), "as-is", answer, {"samples_ns": samples, **arrays}
    )


def steady(ms: float, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).normal(ms, ms / 100, 1000) * 1e6).astype(np.int64)


def test_a_spread_above_five_percent_is_a_warning() -> None:
    close = rows_of(ABOUT, [run_of(steady(1.0)), run_of(steady(1.03, 1)), run_of(steady(1.01, 2))], [])[0]
    assert (close["verdict"], close["reasons"]) == ("VALID", [])
    apart = rows_of(ABOUT, [run_of(steady(1.0)), run_of(steady(1.09, 1)), run_of(steady(1.0, 2))], [])[0]
    assert apart["verdict"] == "WARN"
    assert apart["reasons"] == [f"spread: the medians of 3 processes lie {apart['spread_percent']:.1f} % apart"]
    assert rows_of(ABOUT, [run_of(steady(1.0))], [])[0]["spread_percent"] is None


def test_a_reason_names_the_process_it_was_seen_in_and_the_worst_verdict_stands() -> None:
    few = run_of(steady(1.0)[:99])
    row = rows_of(ABOUT, [run_of(steady(1.0)), few, run_of(steady(1.0))], ["remark"])[0]
    assert row["verdict"] == "INVALID"
    assert row["reasons"] == ["too few samples: 99 of 100 (process 2 of 3)", "remark"]
    assert rows_of(ABOUT, [few, few], [])[0]["reasons"] == ["too few samples: 99 of 100"]


def test_what_the_device_read_of_itself_is_held_against_clocks_that_it_reports_as_locked() -> None:
    run = run_of(
        steady(1.0),
        state_times_ns=np.array([[0, 1], [10, 11], [20, 21]]),
        state_values=np.full((3, 1), 900e6),
    )
    run.answer["state"].update(names=["gpu_hz/17000000.gpu"], windows_ns={"timed": [0, 30]})
    run.answer["clocks"] = "locked"
    gpu = {"name": "17000000.gpu", "min_hz": 306_000_000, "max_hz": 1_300_500_000}
    run.answer["machine"]["after"] = {"vitals": {"clocks": {"gpu": [gpu], "locked": False}}}
    (row,) = rows_of(ABOUT, [run], [])
    assert row["verdict"] == "INVALID"
    assert row["reasons"] == [
        "throttled: 17000000.gpu never came to its 1300 MHz, only to 900",
        "clocks not as asked: locked was reported, but lowest and highest clock still differ",
    ]


@pytest.mark.parametrize(("providers", "verdict"), [(["GPU"], "WARN"), (["CPUExecutionProvider"], "VALID")])
def test_who_has_the_gpu_open_is_foreign_load_of_what_runs_there(providers: list[str], verdict: str) -> None:
    run = run_of(steady(1.0))
    run.answer["runtime"]["providers"] = providers
    before = {"gpu_processes": [{"pid": 7, "name": "game"}], "gpu_load_percent": 99.0}
    run.answer["machine"]["before"] = {"vitals": before}
    both = [{"pid": 7, "name": "game"}, {"pid": 9, "name": "trainer"}]
    run.answer["machine"]["after"] = {"vitals": {"gpu_processes": both}}
    (row,) = rows_of(ABOUT, [run], [])
    told = [f"foreign load: {name} has the GPU open" for name in ("game (7)", "trainer (9)")]
    told.append("foreign load: the GPU was 99 % busy before anything was loaded")
    assert (row["verdict"], row["reasons"]) == (verdict, told if verdict == "WARN" else [])


def test_quantities_are_in_ms_and_none_where_the_runtime_has_no_such_part() -> None:
    found = quantities_ms(run_of(steady(1.0), gpu_ns=np.full(200, 500_000)))
    assert found["gpu"] == {"p50": 0.5, "p50_lo": 0.5, "p50_hi": 0.5, "p90": 0.5}
    assert {name for name, table in found.items() if table is None} == set(QUANTITIES) - {"gpu"}


def scenarios() -> list[dict[str, Any]]:
    run = run_of(
        steady(1.0),
        periodic_30_ns=np.full(150, 2_000_000),
        periodic_60_ns=np.full(300, 20_000_000),
        offline_1_ns=np.full(150, 1_000_000),
        offline_16_ns=np.full(150, 8_000_000),
    )
    rates = [{"fps": 30.0, "missed": 1}, {"fps": 60.0, "missed": 300}]
    run.answer["timing"]["periodic"] = {"rates": rates, "sustainable_fps": 55.5, "most_missed": 0.01}
    run.answer["timing"]["offline"] = [{"batch": batch, "golden": {"ok": True}, "steady": True} for batch in (1, 16)]
    return rows_of(ABOUT, [run], [])


def test_a_scenario_is_a_row_of_its_own() -> None:
    single, slow, fast, one, sixteen = scenarios()
    assert [row["scenario"] for row in (single, slow, fast, one, sixteen)] == [
        "single_stream",
        "periodic",
        "periodic",
        "offline",
        "offline",
    ]
    assert all(set(row) == set(single) for row in (slow, fast, one, sixteen))
    assert (slow["fps"], slow["missed_percent"], slow["sustainable_fps"]) == (30.0, pytest.approx(100 / 150), 55.5)
    assert (slow["verdict"], slow["latency_ms"]["p50"], slow["n"]) == ("WARN", 2.0, 150)
    assert fast["verdict"] == "WARN"
    assert fast["reasons"] == ["deadlines missed: 100.0 % of 300 frames took longer than 16.7 ms", ONE_PROCESS]
    assert (sixteen["batch"], sixteen["throughput_ips"], one["throughput_ips"]) == (16, 2000.0, 1000.0)
    assert sixteen["fps"] is None
    assert slow["reasons"] == sixteen["reasons"] == one["reasons"] == [ONE_PROCESS]
    assert single["reasons"] == []


def test_a_batch_is_judged_by_its_own_golden_check_and_warm_up() -> None:
    nothing = np.zeros(0, np.int64)
    timed = {"offline_1_ns": nothing, "offline_2_ns": steady(2.0), "offline_4_ns": steady(4.0), "offline_8_ns": nothing}
    run = run_of(steady(1.0), **timed)
    run.answer["timing"]["warm_up"] = {"steady": False}
    run.answer["timing"]["offline"] = [
        {"batch": 1, "golden": {"ok": False}, "steady": None},
        {"batch": 2, "golden": {"ok": True}, "steady": False},
        {"batch": 4, "golden": {"ok": True}, "steady": True},
        {"batch": 8, "golden": None, "steady": None, "failed": "E_LOAD: no"},
    ]
    single, wrong, restless, right, failed = rows_of(ABOUT, [run], [])
    unsteady = "not steady: the warm-up ended before its windows agreed"
    assert (single["verdict"], single["reasons"]) == ("WARN", [unsteady])
    assert (wrong["verdict"], wrong["n"], wrong["latency_ms"]["p50"]) == ("INVALID", 0, None)
    assert wrong["reasons"][0].startswith("golden mismatch: ")
    assert (failed["verdict"], failed["n"], failed["latency_ms"]["p50"]) == ("INVALID", 0, None)
    assert failed["reasons"] == ["failed: batch 8: E_LOAD: no", ONE_PROCESS]
    assert (restless["verdict"], restless["reasons"]) == ("WARN", [unsteady, ONE_PROCESS])
    assert (right["verdict"], right["reasons"]) == ("WARN", [ONE_PROCESS])


def watched(run: Run, **windows: list[int]) -> Run:
    """Its machine read once a second for ten: cooling from the sixth on, another's load not at all."""
    times = np.arange(10) * 10**9
    cooling, stolen = (times >= 6 * 10**9) * 3.0, (times >= 6 * 10**9) * (times - 6e9) / 1e9
    run.arrays.update(
        state_times_ns=np.stack([times, times + 1000], axis=1), state_values=np.stack([cooling, stolen], axis=1)
    )
    names = ["cooling/0:cpufreq-cpu0", "steal_s/all"]
    run.answer["state"].update(names=names, windows_ns=windows, rate_hz=1.0, cpu_s=0.0)
    return run


def test_a_scenario_is_judged_by_what_happened_while_it_ran() -> None:
    """A board that slows down only under a batch, and guests of its host that come only then."""
    run = run_of(steady(1.0), offline_16_ns=steady(8.0), periodic_30_ns=steady(8.0))
    run.answer["timing"]["offline"] = [{"batch": 16, "golden": {"ok": True}, "steady": True, "foreign_cpus": 1.5}]
    rates = [{"fps": 30.0, "missed": 0, "foreign_cpus": 0.0}]
    run.answer["timing"]["periodic"] = {"rates": rates, "sustainable_fps": 55.5, "most_missed": 0.01}
    seconds = {"timed": [0, 2], "periodic_30": [2, 5], "offline_16": [5, 9]}
    watched(run, **{name: [begin * 10**9, end * 10**9] for name, (begin, end) in seconds.items()})
    single, frames, batch = rows_of(ABOUT, [run], [])
    assert (single["reasons"], frames["reasons"]) == ([], [ONE_PROCESS])
    assert batch["reasons"] == [
        "throttled: cpufreq-cpu0 cooled by slowing down",
        "foreign load: other processes kept 1.5 of 2 CPUs busy",
        "foreign load: other guests of the machine's host took 0.75 CPUs",
        ONE_PROCESS,
    ]


def test_what_makes_the_single_stream_invalid_makes_all_of_its_scenarios_so() -> None:
    run = run_of(steady(1.0), offline_16_ns=steady(8.0))
    run.answer["timing"]["offline"] = [{"batch": 16, "golden": {"ok": True}, "steady": True}]
    run.answer["timing"]["outputs"] = {"looked_at": 10, "not_finite": 1}
    single, batch = rows_of(ABOUT, [run], [])
    assert single["verdict"] == batch["verdict"] == "INVALID"


def test_what_peak_memory_leaves_out_on_a_gpu_is_said_and_when_the_last_process_ended(tmp_path: Path) -> None:
    run = run_of(steady(1.0))
    run.answer.update(memory={"peak_bytes": 1}, clock=None, finished_at_s=86_400.0)
    run.answer["timing"] |= {"cold_load_ms": 1.0, "first_inference_ms": 1.0}
    told = [facts_of([run], run.preset, 0)["memory"]["includes"]]
    run.answer["runtime"]["providers"] = ["GPU"]
    told.append(facts_of([run], run.preset, 0)["memory"]["includes"])
    assert ["not what is on the GPU" in one for one in told] == [False, True]
    later = run._replace(answer=run.answer | {"finished_at_s": 2 * 86_400.0})
    written = write_profile({}, {"default": [later, run]}, tmp_path / "record.json")
    assert written["finished_at"] == "1970-01-03T00:00:00+00:00"


def test_the_protocol_says_how_many_processes_there_were() -> None:
    run = run_of(steady(1.0))
    run.answer.update(memory={"peak_bytes": 1}, clock=None)
    run.answer["timing"] |= {"cold_load_ms": 1.0, "first_inference_ms": 1.0}
    told = [facts_of([run] * num, run.preset, 0)["protocol"]["processes"] for num in (1, 3)]
    assert told[0] == "a single fresh one, and its interval"
    assert told[1].startswith("3 fresh ones, files taking turns")


def test_one_process_is_not_enough_to_be_quoted() -> None:
    run = run_of(steady(1.0))
    (row,) = rows_of(ABOUT, [run._replace(preset=dataclasses.replace(run.preset, repeats=1))], [])
    assert (row["verdict"], row["reasons"]) == ("WARN", [ONE_PROCESS])
