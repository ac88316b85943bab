"""What a run says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afpkd.record import read_record
from pipeline.summary import closing, facts

if TYPE_CHECKING:
    from tests.pipeline.conftest import HandMadeRun

DEFAULTS = {"RECIPE": "default", "DEVICE": "local", "TRAIN_DEVICE": "auto", "TRAIN_PROCESSES": "1", "RUNS": "runs"}


def test_the_closing_table_shows_the_records(made: HandMadeRun) -> None:
    text = closing(made.folder, ["profile"], DEFAULTS)
    student = read_record(made.folder / "student" / "record.json")
    row = next(line for line in text.splitlines() if line.startswith("student"))
    assert row.split()[1:3] == [student["arch"], f"{student['metrics']['test_top1_selected']:.2f}"]
    profile = next(line for line in text.splitlines() if line.startswith("student") and "local" in line)
    assert f"{read_record(made.folder / 'profiles/local/student-fp32.json')['latency_ms']['p50']:.2f} ms" in profile


def test_the_next_command_keeps_what_was_given(made: HandMadeRun) -> None:
    assert closing(made.folder, ["distill"], DEFAULTS).endswith("next: make export")
    given = {**DEFAULTS, "RECIPE": "my recipe.toml", "RUNS": "elsewhere"}
    assert closing(made.folder, ["export"], given).endswith("next: make profile RECIPE='my recipe.toml' RUNS=elsewhere")


def test_leftovers_of_a_kill_are_not_read(made: HandMadeRun) -> None:
    (made.folder / "profiles" / "local" / ".student-fp32.json.x1.json").write_text("{")
    assert len(facts(made.folder)["profiles"]) == 3
    assert len(made.records().profiles) == 3
