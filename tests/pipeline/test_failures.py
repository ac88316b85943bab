"""A measurement that failed is named in the report until it succeeds, or another run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afpkd.errors import UserError
from afpkd.record import write_record
from deploy.measure import Wanted
from deploy.target import DeviceError
from pipeline import failures, graph, stages
from pipeline.report import findings
from pipeline.workspace import open_run
from tests.pipeline.conftest import HandMadeRun

AWAY = DeviceError("away", "E_UNREACHABLE", "no answer")


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What measuring raises, one call after the other; nothing: it succeeds."""
    raised: list[BaseException] = []

    def measured(wanted: list[Wanted], **how: Any) -> list[dict[str, Any]]:
        if raised:
            raise raised.pop(0)
        for one in wanted:
            one.out.parent.mkdir(parents=True, exist_ok=True)
            one.out.write_text("{}")
        return [{"role": "student", "latency_ms": {"p50": 1.0}, "verdict": "VALID", "reasons": []} for _ in wanted]

    monkeypatch.setattr("deploy.measure.profile_files", measured)
    return raised


def test_it_is_noted_beside_the_profiles_and_forgotten_once_it_succeeds(
    away: list[BaseException], tmp_path: Path
) -> None:
    run = open_run("default", tmp_path)
    away.append(DeviceError("away", "E_UNREACHABLE", "nobody answers"))
    with pytest.raises(UserError):
        stages.profile(run, ["student"], "fp16", "away")
    (row,) = failures.failures(run.folder)
    told = {"error": "device away: nobody answers [E_UNREACHABLE]", "code": "E_UNREACHABLE"}
    assert row == {"device": "away", "file": "student-fp16", **told}
    assert not list(run.folder.glob("profiles/*/[!.]*.json"))  # it is no profile
    stages.profile(run, ["student"], "fp16", "away")
    assert failures.failures(run.folder) == []


def test_an_interrupted_measurement_did_not_fail(away: list[BaseException], tmp_path: Path) -> None:
    run = open_run("default", tmp_path)
    away.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stages.profile(run, ["student"], "fp16", "away")
    assert failures.failures(run.folder) == []


def test_a_new_run_begins_without_them_and_knows_that_there_were_some(tmp_path: Path) -> None:
    for device in ("a", "b"):
        failures.note_failure(tmp_path / "profiles" / device / "student-fp32.json", AWAY)
    assert failures.clear_failures(tmp_path)
    assert failures.failures(tmp_path) == []
    assert not failures.clear_failures(tmp_path)


def test_the_report_says_once_what_failed_everywhere_on_a_device_and_how_to_try_again(made: HandMadeRun) -> None:
    for role in ("teacher", "student"):
        failures.note_failure(made.folder / "profiles" / "away" / f"{role}-fp32.json", AWAY)
    gaps = [gap for gap in findings.missing(made.records()) if "away" in gap.what]
    assert [gap.what for gap in gaps] == ["failed: device away: no answer [E_UNREACHABLE]"]
    assert "DEVICE=away" in gaps[0].command


@pytest.mark.parametrize(
    ("goal", "extra", "kept"),
    [
        ("profile", (), False),
        ("report", (), False),
        ("distill", (), True),
        ("profile", ("-np",), True),
        ("profile", ("--dry-run",), True),
        ("profile", ("--printshellcmds",), False),
    ],
)
def test_a_run_drops_the_outdated_of_what_it_measures(
    goal: str, extra: tuple[str, ...], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "_snakemake", lambda *_: None)
    record = tmp_path / "default" / "profiles" / "local" / "student-fp32.json"
    write_record(record, {"config_digest": "of other settings"})
    how: dict[str, Any] = {"recipes": ["default"], "runs": tmp_path, "devices": ["local"], "train_device": "cpu"}
    graph.run_goals([goal], **how, extra=extra)
    assert record.exists() == kept
