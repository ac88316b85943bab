"""What a run says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from afpkd.record import read_record
from pipeline.progress import QUIET_VARIABLE
from pipeline.summary import announce, closing, facts
from tests.pipeline.conftest import HandMadeRun, hand_made_run

if TYPE_CHECKING:
    from pathlib import Path

DEFAULTS = {"RECIPE": "default", "DEVICE": "local", "TRAIN_DEVICE": "auto", "TRAIN_PROCESSES": "1", "RUNS": "runs"}


def test_the_closing_table_shows_the_records(made: HandMadeRun) -> None:
    text = closing([facts(made.folder)], ["profile"], DEFAULTS)
    student = read_record(made.folder / "student" / "record.json")
    row = next(line for line in text.splitlines() if line.startswith("student"))
    assert row.split()[1:3] == [student["arch"], f"{student['metrics']['test_top1_selected']:.2f}"]
    undistilled = read_record(made.folder / "undistilled" / "record.json")
    gain = student["metrics"]["test_top1_selected"] - undistilled["metrics"]["test_top1_selected"]
    assert row.split()[-2:] == [f"{gain:+.2f}", "points"] == ["+1.20", "points"]
    assert text.count("points") == 1
    profile = next(line for line in text.splitlines() if line.startswith("student") and "local" in line)
    assert f"{read_record(made.folder / 'profiles/local/student-fp32.json')['latency_ms']['p50']:.2f} ms" in profile


def test_the_next_command_keeps_what_was_given(made: HandMadeRun) -> None:
    assert closing([facts(made.folder)], ["distill"], DEFAULTS).endswith("next: make export")
    given = {**DEFAULTS, "RECIPE": "my recipe.toml", "RUNS": "elsewhere"}
    assert closing([facts(made.folder)], ["export"], given).endswith(
        "next: make profile RECIPE='my recipe.toml' RUNS=elsewhere"
    )


def test_a_loss_is_shown_as_one_and_without_a_control_there_is_nothing_to_compare(made: HandMadeRun) -> None:
    made.put_record("student", metrics={"test_top1_selected": 80.0})
    assert "-5.20 points" in closing([facts(made.folder)], ["distill"], DEFAULTS)
    (made.folder / "undistilled" / "record.json").unlink()
    assert "points" not in closing([facts(made.folder)], ["distill"], DEFAULTS)


def test_quiet_announces_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    announce(["distill"], ["default"])
    assert "distill: train the teacher" in capsys.readouterr().err
    monkeypatch.setenv(QUIET_VARIABLE, "1")
    announce(["distill"], ["default"])
    assert capsys.readouterr() == ("", "")


def test_leftovers_of_a_kill_are_not_read(made: HandMadeRun) -> None:
    (made.folder / "profiles" / "local" / ".student-fp32.json.x1.json").write_text("{")
    assert len(facts(made.folder)["profiles"]) == 3
    assert len(made.records().profiles) == 3


def test_several_runs_are_a_row_each(made: HandMadeRun, tmp_path: Path) -> None:
    other = hand_made_run(tmp_path / "other")
    other.put_record("student", metrics={"test_top1_selected": 70.0, "test_top1_last": 70.0, "heldout_top1": 70.0})
    other.put_profile("student", verdict="INVALID")
    (other.folder / "undistilled" / "record.json").unlink()
    found = [facts(made.folder), facts(other.folder)]
    lines = closing(found, ["distill"], {**DEFAULTS, "RECIPES": "tiny other"}).splitlines()
    fastest = read_record(made.folder / "profiles/local/student-fp32.json")["latency_ms"]["p50"]
    assert lines[0].split()[-5:] == ["teacher", "student", "undistilled", "student's", "fastest"]
    assert lines[1].split() == [
        "tiny",
        "89.50",
        "%",
        "86.40",
        "%",
        "85.20",
        "%",
        "fp32",
        "local",
        f"{fastest:.2f}",
        "ms",
    ]
    assert lines[2].split() == ["other", "89.50", "%", "70.00", "%", "-", "-"]
    assert "next: make export RECIPES='tiny other'" in lines
    assert lines[-1].endswith("comparison/report.html")
