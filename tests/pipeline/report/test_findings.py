"""What the report finds in the records: every expected number is computed here by hand."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from afpkd.errors import UserError
from afpkd.record import Json, read_record, write_record
from pipeline import summary
from pipeline.report.candidates import candidates_of
from pipeline.report.picture_data import curves_of
from pipeline.report.plots import scatter_figures
from pipeline.report.records import read_records
from pipeline.report.tradeoff import Place, Standing

if TYPE_CHECKING:
    from tests.pipeline.conftest import HandMadeRun


def test_headline_says_accuracy_size_and_speed(made: HandMadeRun) -> None:
    report = made.report()
    expected = (
        "The distilled student (resnet8) reaches 86.40 % top-1: "
        "+1.20 points against the same network undistilled, −3.10 points against its teacher. "  # 86.4 - 85.2, - 89.5
        "Compared with the teacher (resnet20) it has 3.40× fewer parameters "  # 272 / 80
        "and 3.20× fewer MACs, "  # 40 / 12.5
        "and is 2.50× faster on local (p50 0.600 ms against 1.500 ms, fp32; VALID)."  # 1.5 / 0.6
    )
    assert expected in report.md
    for tile in ("86.40 %", "3.40×", "3.20×", "2.50×", "+1.20 points against the same network undistilled"):
        assert tile in report.page().text


def test_headline_when_the_student_is_worse(made: HandMadeRun) -> None:
    made.put_profile("student", latency_ms={"p50": 3.0, "p90": 3.5, "p99": None}, top1=85.2)
    text = made.report().md
    assert "2.00× slower on local" in text
    assert "+0.00 points against the same network undistilled" in text


def test_the_headline_takes_the_exported_files_accuracy(made: HandMadeRun) -> None:
    made.put_profile("student", top1=80.0)
    assert "reaches 80.00 % top-1: −5.20 points" in made.report().md  # the weights have 86.4


@pytest.mark.parametrize("verdict", ["WARN", "INVALID"])
def test_a_doubtful_row_is_marked_everywhere(made: HandMadeRun, verdict: str) -> None:
    reason = "foreign load: other processes kept 1.3 of 2 CPUs busy"
    made.put_profile("teacher", verdict=verdict, reasons=[reason])
    report = made.report()
    assert f"2.50× faster on local (p50 0.600 ms against 1.500 ms, fp32; {verdict})" in report.md
    teacher, student, _ = report.tables()["Models"]
    assert (teacher["Verdict"], teacher["Reasons"]) == (verdict, reason)
    assert student["Verdict"] == "VALID"
    speedup = report.tables()["Speed-up"][0]
    assert (speedup["Verdict"], speedup["Reasons"]) == (verdict, f"teacher: {reason}")
    page = report.page()
    assert f"{verdict}: {reason}" in page.text
    assert page.tags.count(("span", {"class": f"badge {verdict.lower()}"})) == 3  # headline, its row, the speed-up
    assert f"{verdict},{reason}" in report.csv
    figure = scatter_figures(candidates_of([made.records()]), [Standing(Place.front)] * 3)["model"]
    symbols = [trace["marker"]["symbol"] for trace in figure["data"] if trace.get("customdata")]
    assert symbols == [[{"WARN": "circle-open", "INVALID": "x-thin-open"}[verdict]], ["circle"], ["circle"]]


def test_an_untimed_row_stays_and_is_not_drawn(made: HandMadeRun) -> None:
    untimed = {"p50": None, "p90": None, "p99": None}
    reason = "golden mismatch: nothing was timed"
    made.put_profile("student", latency_ms=untimed, throughput_ips=None, verdict="INVALID", reasons=[reason])
    report = made.report()
    student = report.tables()["Models"][1]
    assert (student["p50 (ms)"], student["Images/s"], student["Verdict"]) == ("-", "-", "INVALID")
    assert student["Reasons"] == reason
    assert "faster" not in report.md
    assert "p50 is “-” where nothing was timed" in report.md
    assert [found.role for found in candidates_of([made.records()])] == ["teacher", "undistilled"]


@pytest.mark.parametrize(("rule", "value"), [("threads", 7), ("preset", "7")])
def test_rows_measured_by_other_rules_do_not_compare(made: HandMadeRun, rule: str, value: Any) -> None:
    changes: Json = {rule: value}
    made.put_profile("teacher", **changes)
    speedup = made.report().tables()["Speed-up"][0]
    assert speedup["Verdict"] == "INVALID"
    assert speedup["Reasons"].startswith(f"not measured by the same rules: {rule} ")
    assert speedup["Reasons"].endswith(" against 7")


def test_rows_of_two_machines_of_one_name_do_not_compare(made: HandMadeRun) -> None:
    made.put_profile("teacher", machine={"system": "Linux", "processor": "Raspberry Pi 4", "num_cpus": 2})
    report = made.report()
    speedup = report.tables()["Speed-up"][0]
    assert speedup["Verdict"] == "INVALID"
    told = "not measured by the same rules: processor Example CPU @ 2 GHz against Raspberry Pi 4"
    assert speedup["Reasons"] == told
    teacher, student, twin = candidates_of([made.records()])
    assert teacher.place != student.place == twin.place


def test_csv_gives_an_interval_to_the_accuracy_that_it_is_of(made: HandMadeRun) -> None:
    made.put_profile("student", top1_interval=[85.9, 86.9])
    path = made.folder / "profiles" / "local" / "student-fp32.json"
    record = read_record(path)
    other = {**record["rows"][0], "mode": "default", "top1": 41.0, "verdict": "INVALID"}
    write_record(path, {**record, "rows": [*record["rows"], other]})
    rows = [row for row in csv.DictReader(made.report().csv.splitlines()) if row["role"] == "student"]
    ends = [(row["top1_percent"], row["top1_low_percent"], row["top1_high_percent"]) for row in rows]
    assert ends == [("86.4", "85.9", "86.9"), ("86.4", "85.9", "86.9"), ("41.0", "", "")]


def test_a_profile_of_an_earlier_export_is_not_used(made: HandMadeRun) -> None:
    made.put_manifest("student", "ee" * 32)
    report = made.report()
    student = report.tables()["Models"][1]
    assert student["Verdict"] == "INVALID"
    assert student["Reasons"].startswith("outdated: the exported file has changed")
    assert "INVALID,outdated" in report.csv
    assert "faster" not in report.md
    assert "distilled at fp32 on local: outdated: make profile RECIPE=tiny" in report.md
    made.put_manifest("student", "bb" * 32)
    assert "outdated" not in made.report().md


def test_a_profile_of_a_file_that_is_no_longer_exported_is_not_used(made: HandMadeRun) -> None:
    """Its network may be another by now: nothing else would say so."""
    made.put_profile("student", precision="int8", inputs={"manifest.json": "aa" * 32, "int8.onnx": "cc" * 32})
    made.put_manifest("student", "bb" * 32)
    report = made.report()
    (told,) = [row for row in report.tables()["Models"] if row["Precision"] == "int8"]
    assert (told["Verdict"], told["Reasons"]) == ("INVALID", "outdated: the file is no longer exported")
    assert "distilled at int8" not in report.md, "none can be measured again"
    (told,) = [row for row in summary.facts(made.folder)["profiles"] if row["precision"] == "int8"]
    assert told["verdict"] == "INVALID"


def test_a_profile_of_a_network_that_was_trained_anew_is_not_used(made: HandMadeRun) -> None:
    made.put_manifest("student", "bb" * 32)
    path = made.folder / "student" / "bundle" / "manifest.json"
    for weights, outdated in (("beef" * 16, False), ("01d0" * 16, True)):
        write_record(path, {**read_record(path), "lineage": {"weights": weights, "calibration": None}})
        report = made.report()
        assert ("outdated: the network was trained anew and has not been exported since" in report.md) == outdated
        (told,) = [row for row in summary.facts(made.folder)["profiles"] if row["role"] == "student"]
        assert (told["verdict"] == "INVALID") == outdated
    assert report.tables()["Models"][1]["Verdict"] == "INVALID"
    assert not [advice for advice in report.json["recommended"] if advice["file"]]


def test_a_control_whose_file_is_broken_is_no_measure_of_the_gain(made: HandMadeRun) -> None:
    made.put_profile("student", top1=86.4)
    made.put_record("undistilled")
    made.put_profile("undistilled", top1=10.0)
    assert "+76.40 points against the same network undistilled" in made.report().md
    made.put_profile("undistilled", top1=10.0, verdict="INVALID", reasons=["not finite: 3 of 64 outputs"])
    assert "+76.40 points" not in made.report().md


def test_several_devices_each_have_their_rows_and_speedup(made: HandMadeRun) -> None:
    for role, p50 in (("teacher", 8.0), ("student", 2.0)):
        made.put_profile(role, "orin", device="orin", latency_ms={"p50": p50, "p90": p50 + 1, "p99": None})
    report = made.report()
    tables = report.tables()
    assert [(row["Device"], row["Speed-up"]) for row in tables["Speed-up"]] == [("local", "2.50×"), ("orin", "4.00×")]
    assert [row["Device"] for row in tables["Models"]] == ["local", "orin", "local", "orin", "local"]
    assert "undistilled at fp32 on orin: not measured: make profile RECIPE=tiny DEVICE=orin" in report.md
    assert ("tiny", "orin", "student", "fp32") in [found.key for found in candidates_of([made.records()])]


def test_the_headline_prefers_a_speedup_that_may_be_used(made: HandMadeRun) -> None:
    made.put_profile("student", verdict="INVALID", reasons=["drift"])
    for role in ("teacher", "student"):
        made.put_profile(role, "orin", device="orin", precision="int8", top1=70.0)
    text = made.report().md
    assert "2.50× faster on orin (p50 0.600 ms against 1.500 ms, int8; VALID)" in text
    # no gap to the undistilled: its int8 file is not measured, and its fp32 accuracy is another thing
    assert "reaches 70.00 % top-1: +0.00 points against its teacher." in text


def test_without_profiles_the_report_says_what_makes_them(made: HandMadeRun) -> None:
    for path in (made.folder / "profiles").glob("*/*.json"):
        path.unlink()
    (made.folder / "undistilled" / "record.json").unlink()
    report = made.report()
    seen = report.page().text
    assert "undistilled: not trained. Run make distill RECIPE=tiny" in seen
    assert "nothing is measured yet. Run make profile RECIPE=tiny" in seen
    assert "86.40 % top-1: −3.10 points against its teacher." in report.md
    assert "it has 3.40× fewer parameters.**" in report.md
    assert "not measured yet, so that of the trained weights: teacher, distilled." in report.md
    student = report.tables()["Models"][1]
    assert (student["Top-1 (%)"], student["p50 (ms)"], student["Verdict"]) == ("86.40", "-", "not measured")
    assert report.csv.count("\n") == 1


def test_without_a_student_the_report_says_so(made: HandMadeRun) -> None:
    (made.folder / "student" / "record.json").unlink()
    (made.folder / "profiles" / "local" / "student-fp32.json").unlink()
    report = made.report()
    assert "**Nothing is distilled yet.**" in report.md
    assert "distilled: not trained: make distill RECIPE=tiny" in report.md


def test_nothing_at_all_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make distill RECIPE=tiny"):
        read_records(tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_broken_metrics_are_a_user_error(made: HandMadeRun) -> None:
    (made.folder / "student" / "metrics.jsonl").write_text('{"epoch": 1, "heldout_')
    with pytest.raises(UserError, match=r"student/metrics\.jsonl"):
        made.report()


def test_a_foreign_teacher_has_no_method_no_epoch_and_no_curve(made: HandMadeRun) -> None:
    metrics = {"test_top1_last": 89.5, "test_top1_selected": 89.5, "heldout_top1": None}
    made.put_record("teacher", method=None, selected_epoch=None, epochs=None, metrics=metrics)
    (made.folder / "teacher" / "metrics.jsonl").unlink()
    tables = made.report().tables()
    assert tables["Models"][0]["Method"] == "foreign weights"
    accuracy = tables["Accuracy of the trained weights"][0]
    assert (accuracy["Held-out, selected"], accuracy["Selected epoch"]) == ("-", "-")
    assert [curve.role for curve in curves_of(made.records())] == ["student", "undistilled"]


def test_a_power_mode_that_a_sweep_left_out_is_named_once(made: HandMadeRun) -> None:
    for role in ("teacher", "student"):
        made.put_profile(role, left_out=["power mode 3 left out: it needs a reboot"])
    told = "- power mode 3 left out: it needs a reboot: make profile RECIPE=tiny"
    assert made.report().md.splitlines().count(told) == 1
