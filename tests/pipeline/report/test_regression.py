"""Regressions between runs: intervals against independent results, verdicts and exit codes by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from afpkd.errors import UserError
from afpkd.record import Json, read_record, write_record
from pipeline.cli_report import compare
from pipeline.report.regression import Outcome, compare_runs
from tests.pipeline.conftest import HandMadeRun
from tests.pipeline.report.comparing import change_profile, compared, one
from tests.pipeline.report.making import whole_run


def test_a_run_is_no_regression_of_itself(runs: tuple[Path, Path]) -> None:
    changes = compared(runs)
    assert {change.outcome for change in changes} == {Outcome.same}
    assert len(changes) == 6 * 4  # p50, p90, top-1, size of six files


def test_a_slower_file_is_worse_past_the_threshold_alone(runs: tuple[Path, Path]) -> None:
    p50 = read_record(runs[0] / "profiles" / "local" / "student-fp32.json")["latency_ms"]["p50"]
    change_profile(runs[1], p50=1.2 * p50)
    found = one(compared(runs), "p50 (ms)")
    assert found.outcome is Outcome.worse
    assert found.change is not None
    # each p50 may be 1 % to both sides: the ratio is 1.2 * 0.99 / 1.01 to 1.2 * 1.01 / 0.99
    assert found.change == pytest.approx((20.0, 100 * (1.2 * 0.99 / 1.01 - 1), 100 * (1.2 * 1.01 / 0.99 - 1)))
    change_profile(runs[1], p50=1.08 * p50)
    assert one(compared(runs), "p50 (ms)").outcome is Outcome.worse
    for folder in runs:
        change_profile(folder, num_runs=1)  # 5 % more to every side: the next process of a file lies elsewhere
    assert one(compared(runs), "p50 (ms)").outcome is Outcome.undecided
    assert one(compared(runs, threshold=20.1), "p50 (ms)").outcome is Outcome.same
    assert {change.outcome for change in compared(runs) if change.name != found.name} == {Outcome.same}


def test_a_faster_file_is_better(runs: tuple[Path, Path]) -> None:
    change_profile(runs[1], p50=0.1, p90=0.1)
    assert one(compared(runs), "p50 (ms)").outcome is Outcome.better


def test_a_change_within_its_interval_is_undecided(runs: tuple[Path, Path]) -> None:
    p50 = read_record(runs[0] / "profiles" / "local" / "student-fp32.json")["latency_ms"]["p50"]
    change_profile(runs[1], p50=1.015 * p50)  # the interval reaches from -0.5 % to 3.5 %
    assert one(compared(runs, threshold=1.0), "p50 (ms)").outcome is Outcome.undecided


def test_without_intervals_a_change_past_the_threshold_is_undecided(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "profiles" / "local" / "student-fp32.json"
    record = read_record(path)
    record["latency_ms"] = {"p50": 2 * record["latency_ms"]["p50"], "p90": record["latency_ms"]["p90"], "p99": None}
    write_record(path, record)
    changes = compared(runs)
    assert one(changes, "p50 (ms)").outcome is Outcome.undecided
    assert one(changes, "p50 (ms)").note == "no interval recorded: profile again"
    assert one(changes, "p90 (ms)").outcome is Outcome.same
    back = one(compared((runs[1], runs[0])), "p50 (ms)")
    assert back.outcome is Outcome.same, "faster, if not for sure: nothing that a later run could settle"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verdict": "INVALID", "reasons": ["drift"]}, "after: INVALID: drift"),
        ({"threads": 7}, "not measured by the same rules: threads 2 against 7"),
        ({"clocks": "locked"}, "not measured by the same rules: clocks as-is against locked"),
        ({"power_mode": "pmode:0001"}, "not measured by the same rules: power mode - against pmode:0001"),
        (
            {"runtime": {"name": "tensorrt", "version": "8.5.2"}},
            "not measured by the same rules: runtime onnxruntime 1.32.0 against tensorrt 8.5.2",
        ),
        (
            {"machine": {"system": "Linux", "processor": "Raspberry Pi 4", "num_cpus": 4}},
            "not measured by the same rules: processor Example CPU @ 2 GHz against Raspberry Pi 4, CPUs 2 against 4",
        ),
        (
            {
                "runtime": {
                    **{"name": "onnxruntime", "version": "1.32.0"},
                    "cuda": {"compute_capability": "8.7", "num_sms": 8, "driver": "12.6"},
                }
            },
            "not measured by the same rules: GPU - against compute capability 8.7 SMs 8",
        ),
        ({"mode": "precise"}, "not measured by the same rules: mode - against precise"),
        ({"device_digest": "ab" * 32}, "not measured by the same rules: entry in devices.toml - against abababab"),
        ({"p50": None}, "too few samples on one side"),
    ],
)
def test_what_does_not_compare_is_undecided(runs: tuple[Path, Path], changes: Json, words: str) -> None:
    change_profile(runs[1], **changes)
    found = one(compared(runs), "p50 (ms)")
    assert (found.outcome, found.note) == (Outcome.undecided, words)
    assert one(compared(runs), "top-1 (%)").outcome is Outcome.same  # accuracy does not depend on the clock


def test_clocks_that_could_not_be_set_are_as_they_were(runs: tuple[Path, Path]) -> None:
    change_profile(runs[1], clocks="as-is: sudo asks for a password")
    assert one(compared(runs), "p50 (ms)").outcome is Outcome.same


def test_what_was_measured_before_its_network_was_trained_anew_is_undecided(runs: tuple[Path, Path]) -> None:
    HandMadeRun(runs[1]).put_manifest("student", "bb" * 32)
    path = runs[1] / "student" / "bundle" / "manifest.json"
    write_record(path, {**read_record(path), "lineage": {"weights": "01d0" * 16, "calibration": None}})
    gone = [change for change in compared(runs) if change.name.startswith("student")]
    assert {change.outcome for change in gone} == {Outcome.undecided}
    assert all("the network was trained anew" in change.note for change in gone)


def test_points_are_called_points(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for folder, ap in zip(runs, (30.0, 28.8), strict=True):
        change_profile(folder, ap=ap)
    with pytest.raises(SystemExit):
        compare(*runs, threshold=5, max_drop=1, as_json=False)
    told = next(
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("student fp32 on local") and " AP " in line
    )
    assert "-1.20 points" in told


def test_a_larger_file_and_a_broken_one_are_worse(runs: tuple[Path, Path]) -> None:
    change_profile(runs[1], size_bytes=400_000, golden={"before": {"ok": False}, "after": None})
    changes = compared(runs)
    assert one(changes, "size (bytes)").outcome is Outcome.worse
    assert one(changes, "golden check").outcome is Outcome.worse


@pytest.mark.parametrize(
    "reason",
    [
        "golden mismatch after the timing: outputs changed during the run (process 2 of 3)",
        "not finite: 3 outputs seen during the timing hold NaN or infinity",
    ],
)
def test_a_file_that_broke_in_a_later_process_is_worse(runs: tuple[Path, Path], reason: str) -> None:
    """`golden` is the first process's."""
    change_profile(runs[1], verdict="INVALID", reasons=["drift: …", reason])
    found = one(compared(runs), "golden check")
    assert (found.outcome, found.note) == (Outcome.worse, reason)


def test_a_file_that_is_not_measured_any_more_is_named(runs: tuple[Path, Path]) -> None:
    (runs[1] / "profiles" / "local" / "student-int8.json").unlink()
    found = one(compared(runs), "all", "student int8 on local")
    assert found.outcome is Outcome.undecided
    assert str(runs[1]) in found.note


def test_two_records_compare_whatever_they_are(runs: tuple[Path, Path]) -> None:
    first = runs[0] / "profiles" / "local" / "teacher-fp32.json"
    second = runs[1] / "profiles" / "local" / "student-fp32.json"
    changes = compare_runs(first, second, threshold=5.0, max_drop=1.0)
    assert {change.name for change in changes} == {"teacher-fp32 -> student-fp32"}
    assert one(changes, "p50 (ms)", "teacher-fp32 -> student-fp32").outcome is Outcome.better


def test_two_records_compare_by_the_clock_on_one_device_and_across_modes_of_two_precisions(
    runs: tuple[Path, Path],
) -> None:
    first, second = (folder / "profiles" / "local" / "student-fp32.json" for folder in runs)
    change_profile(runs[1], precision="int8", mode="precise")
    assert {change.outcome for change in compare_runs(first, second, threshold=5.0, max_drop=1.0)} == {Outcome.same}
    change_profile(runs[1], device="orin1")
    found = one(compare_runs(first, second, threshold=5.0, max_drop=1.0), "p50 (ms)", "student-fp32 -> student-fp32")
    assert (found.outcome, found.note) == (
        Outcome.undecided,
        "not measured by the same rules: device local against orin1",
    )


def test_a_record_without_role_and_accuracy_compares_by_the_clock(runs: tuple[Path, Path]) -> None:
    paths = []
    for folder in runs:
        paths.append(folder / "measured.json")
        record = read_record(folder / "profiles" / "local" / "student-fp32.json")
        write_record(paths[-1], record | {"role": None, "precision": None, "top1": None, "top1_interval": None})
    assert {change.quantity for change in compare_runs(*paths, threshold=5.0, max_drop=1.0)} == {
        *("p50 (ms)", "p90 (ms)", "size (bytes)")
    }


def test_a_run_whose_bundles_lie_beside_it_is_compared(runs: tuple[Path, Path]) -> None:
    """A manifest has keys of a record's name and another form: `macs` is a table there."""
    before = compare_runs(*runs, threshold=5.0, max_drop=1.0)
    for folder in runs:
        HandMadeRun(folder).put_manifest("student", "aa" * 32)
    assert {change.name for change in compare_runs(*runs, threshold=5.0, max_drop=1.0)} == {
        change.name for change in before
    }


def test_mistakes_are_one_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no profiles there"):
        compare_runs(tmp_path, runs[1], threshold=5.0, max_drop=1.0)
    with pytest.raises(UserError, match=r"record\.json: afpkd\.checkpoint/1: not a profile: name a run's folder"):
        compare_runs(runs[0] / "student" / "record.json", runs[1], threshold=5.0, max_drop=1.0)
    other = whole_run(tmp_path / "orin", devices={"orin": 1.0}).folder
    with pytest.raises(UserError, match="no file in common"):
        compare_runs(runs[0], other, threshold=5.0, max_drop=1.0)


def verb(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "compare", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_exit_codes_of_the_verb(runs: tuple[Path, Path]) -> None:
    code, out, _ = verb(*runs)
    assert code == 0
    assert out.splitlines()[-1] == "0 worse, 0 better, 24 same, 0 undecided"
    change_profile(runs[1], "teacher-fp32", verdict="INVALID", reasons=["drift"])
    code, out, _ = verb(*runs)
    assert code == 3
    assert "undecided  after: INVALID: drift" in out
    change_profile(runs[1], p50=5.0)
    code, out, _ = verb(*runs, "--json")
    found = json.loads(out)
    assert code == found["exit"] == 1
    (worse,) = [change for change in found["changes"] if change["outcome"] == "worse"]
    assert (worse["name"], worse["quantity"], worse["after"]) == ("student fp32 on local", "p50 (ms)", 5.0)
    assert worse["change"]["low"] > 5
    assert verb(*runs, "--threshold", "100000")[0] == 3
    code, out, error = verb(runs[0], runs[1] / "nothing")
    assert (code, out) == (2, "")
    assert "no such run or record" in error
    assert verb(*runs, "--threshold", "-1")[0] == 2
