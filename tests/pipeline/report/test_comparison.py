"""One report over several recipes and devices: through the verb, and what stands in it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afpkd.errors import UserError
from afpkd.record import read_record, write_record
from pipeline.cli import app
from pipeline.failures import note_failure
from pipeline.report import KINDS
from pipeline.report.writing import write_report
from tests.pipeline.conftest import Report, report_at
from tests.pipeline.report.making import whole_run

RECIPES = ("one", "two")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two recipes, each measured on two devices."""
    for seed, name in enumerate(RECIPES):
        (tmp_path / f"{name}.toml").write_text(f'extends = "default"\ndescription = "Recipe {name}"\n')
        whole_run(tmp_path / "runs" / name, devices={"local": 1.0, "orin": 3.0}, seed=seed)
    return tmp_path / "runs"


def verb(runs: Path, *arguments: object) -> str:
    """What the verb says on stdout."""
    done = CliRunner().invoke(app, ["report", "--runs", str(runs), *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def compared(runs: Path, *arguments: object) -> Report:
    recipes = [runs.parent / f"{name}.toml" for name in RECIPES]
    verb(runs, "--recipes", *recipes, *arguments)
    return report_at(runs / "comparison" / "asked" if arguments else runs / "comparison")


def test_recipes_stand_side_by_side(runs: Path) -> None:
    report = compared(runs)
    assert {kind for kind in KINDS if (runs / "comparison" / f"report.{kind}").stat().st_size > 500} == set(KINDS)
    rows = report.tables()["Models"]
    assert len(rows) == 2 * 3 * 2 * 2  # recipes, roles, precisions, devices
    assert [row["Recipe"] for row in rows[::12]] == ["one", "two"]
    assert {row["Recipe"] for row in report.tables()["Speed-up"]} == {"one", "two"}
    assert [row["Device"] for row in report.tables()["On each device"]] == ["local", "orin"]
    text = report.page().text
    assert "one: Recipe one" in text
    assert "two: The distilled student (resnet8) reaches" in text
    assert "two/profiles/orin/student-int8.json" in text
    assert {row["recipe"] for row in csv.DictReader(report.csv.splitlines())} == {"one", "two"}
    assert "make profile RECIPE=two.toml DEVICE=orin" in text
    # training curves are in each run's own report
    assert 'id="training"' not in report.html


def test_devices_can_be_chosen(runs: Path) -> None:
    report = compared(runs, "--devices", "orin", "--min-accuracy", "10")
    assert {row["Device"] for row in report.tables()["Models"]} == {"orin"}
    assert report.json["budget"] == {"max_latency_ms": None, "min_accuracy": 10.0}
    assert len(compared(runs, "--devices", "orin", "local").tables()["Models"]) == 24


def test_a_device_that_nothing_was_measured_on_is_a_user_error(runs: Path) -> None:
    shutil.rmtree(runs / "two" / "profiles" / "orin")
    assert {row["Recipe"] for row in compared(runs, "--devices", "orin").tables()["Models"]} == {"one", "two"}
    (runs / "one" / "profiles" / "away").mkdir()
    note_failure(runs / "one" / "profiles" / "away" / "student-fp32.json", UserError("E_AUTH", "no entry"))
    assert "failed: no entry [E_AUTH]" in compared(runs, "--devices", "away").page().text
    with pytest.raises(UserError, match=r"--devices orim: .*on: away, local, orin.*profile .*DEVICE=orim") as said:
        compared(runs, "--devices", "orin", "orim", "--out", runs / "none")
    assert said.value.code == "E_RUN_MISSING"
    assert not (runs / "none").exists()


def test_the_recommended_file_is_the_fastest_student_of_all(runs: Path) -> None:
    report = compared(runs, "--min-accuracy", "80")
    rows = [row for row in csv.DictReader(report.csv.splitlines()) if row["scenario"] == "single_stream"]
    students = [row for row in rows if row["role"] == "student"]
    best = min(students, key=lambda row: float(row["latency_p50_ms"]))
    (found,) = report.json["recommended"]
    assert found["file"] == {key: best[key] for key in ("recipe", "device", "role", "precision")}
    named = f"distilled resnet8 (afpkd), {best['precision']} [{best['recipe']}], on local"
    assert named in report.page().text


def test_the_verb_says_what_it_recommends_and_where_the_page_is(runs: Path, tmp_path: Path) -> None:
    said = verb(runs, "--recipe", runs.parent / "one.toml", "--out", tmp_path / "elsewhere")
    assert said.startswith("recommended: one: student ")
    assert said.splitlines()[-1] == f"report: {tmp_path / 'elsewhere' / 'report.html'}"
    paths = json.loads(verb(runs, "--recipe", runs.parent / "one.toml", "--max-latency-ms", "0.0001", "--json"))
    assert sorted(paths) == sorted(KINDS)
    assert Path(paths["json"]).parent == runs / "one" / "asked"  # the run's own report stays
    assert not (runs / "one" / "report.json").exists()
    assert read_record(Path(paths["json"]))["recommended"][0]["file"] is None


def test_a_recipe_that_was_never_run_is_a_user_error(runs: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "report", "--runs", str(runs)]
    command += ["--recipes", str(runs.parent / "one.toml"), "default"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "make distill RECIPE=default" in done.stderr
    assert not (runs / "comparison").exists()


def test_accuracies_on_different_data_do_not_compete(runs: Path) -> None:
    for role in ("teacher", "student", "undistilled"):
        path = runs / "two" / role / "record.json"
        write_record(path, read_record(path) | {"data": "cifar100"})
    report = compared(runs)
    assert [found["data"] for found in report.json["recommended"]] == ["fashion_mnist_5k", "cifar100"]
    assert "Recommended for cifar100" in report.page().text


def test_own_images_of_one_name_do_not_compete(runs: Path) -> None:
    for name in RECIPES:
        for role in ("teacher", "student", "undistilled"):
            path = runs / name / role / "record.json"
            record = read_record(path)
            write_record(path, record | {"data": "folder", "inputs": record["inputs"] | {"data": f"{name}{'0' * 61}"}})
    found = compared(runs).json["recommended"]
    assert [advice["data"] for advice in found] == ["folder one00000", "folder two00000"]
    assert [advice["file"]["recipe"] for advice in found] == ["one", "two"]


def test_pictures_are_found_from_where_the_report_lies(runs: Path) -> None:
    (runs / "one" / "prompts").mkdir(exist_ok=True)
    write_record(runs / "one" / "prompts" / "record.json", {"metrics": {}})
    (runs / "one" / "prompts" / "level0.png").write_bytes(b"png")
    links = [
        re.findall(r"!\[[^]]*\]\((.+level0\.png)\)", compared(runs, *more).md) for more in ((), ("--devices", "orin"))
    ]
    assert links == [["../one/prompts/level0.png"], ["../../one/prompts/level0.png"]]


def test_json_says_each_candidates_standing(runs: Path) -> None:
    found = compared(runs).json["candidates"]
    assert len(found) == 24
    front = [c for c in found if c["trade_off"] == "front"]
    assert front
    assert all(c["beaten_by"] is None for c in front)
    beaten = [c for c in found if c["trade_off"] == "dominated"]
    for candidate in beaten:
        keys = ("recipe", "device", "role", "precision")
        (by,) = [c for c in found if {key: c[key] for key in keys} == candidate["beaten_by"]]
        assert by["p50_ms"]["value"] <= candidate["p50_ms"]["value"]
        assert by["accuracy"]["value"] >= candidate["accuracy"]["value"]
    assert beaten


def test_a_thousand_rows_stay_a_page(tmp_path: Path) -> None:
    devices = {f"board{number}": 1.0 + number / 10 for number in range(170)}
    run = whole_run(tmp_path / "many", devices=devices)
    begin = time.process_time()
    paths = write_report([run.records()], tmp_path / "out")
    spent = time.process_time() - begin
    page = paths["html"].read_text(encoding="utf-8")
    assert page.count('<tbody class="student"') == 340
    assert page.count("* plotly.js v") == 1
    assert len(page) < 14_000_000
    assert spent < 30  # seconds of one core, on a slow machine; some 6 on a quick one
