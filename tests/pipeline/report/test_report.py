"""The report's formats: the numbers are the records', the page is self-contained, hostile text stays text."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from plotly.offline import get_plotlyjs

from afpkd.record import read_record, write_record
from pipeline.recipe_reader import load_recipe
from pipeline.report.findings import headline
from tests.pipeline.conftest import MACHINE, bundle_check, bundle_file, profile_record

if TYPE_CHECKING:
    from tests.pipeline.conftest import MACHINE, HandMadeRun, profile_record

ROLES = ("teacher", "student", "undistilled")
HOSTILE = '<script>alert("x")</script>|`a`'


def test_main_table_rows_come_from_the_profiles(made: HandMadeRun) -> None:
    report = made.report()
    rows = report.tables()["Models"]
    assert [row["Model"] for row in rows] == ["teacher", "distilled", "undistilled"]
    assert rows[1] == {
        "Model": "distilled",
        "Architecture": "resnet8",
        "Method": "afpkd",
        "Precision": "fp32",
        "Device": "local",
        "Top-1 (%)": "86.40",
        "Parameters": "80 k",
        "MACs (FLOPs/2)": "12.5 M",
        "File size": "330 kB",
        "p50 (ms)": "0.600",
        "p90 (ms)": "0.850",
        "p99 (ms)": "-",
        "Images/s": "1,234.6",
        "Peak memory": "84 MB",
        "Trade-off": "on the front",
        "Verdict": "VALID",
        "Reasons": "",
    }
    seen = report.page().text
    for value in ("86.40", "80 k", "12.5 M", "330 kB", "0.600", "0.850", "1,234.6", "84 MB", "MACs (FLOPs/2)"):
        assert f" {value} " in seen


def test_p99_of_too_few_samples_has_a_footnote_only_where_it_applies(made: HandMadeRun) -> None:
    note = "p99 is “-” where n is too small"
    report = made.report()
    assert note in report.md
    assert note in report.page().text
    for role in ROLES:
        made.put_profile(role, latency_ms={"p50": 1.0, "p90": 2.0, "p99": 2.125})
    report = made.report()
    assert note not in report.md
    assert {row["p99 (ms)"] for row in report.tables()["Models"]} == {"2.125"}


def test_footnotes_name_the_test_set_the_memory_and_a_difference_in_macs(made: HandMadeRun) -> None:
    made.put_manifest("student", "bb" * 32, note="torch counts 3 more")
    engine = {"name": "tensorrt", "version": "10.3.0", "engine": {"device_memory_bytes": 4_100_000}}
    made.put_profile("student", memory={"peak_bytes": 1, "includes": "the whole process"}, runtime=engine)
    report = made.report()
    for note in (
        "Top-1 is that of the exported file on the test set (1,234 images).",
        "Peak memory is that of the whole process.",
        "Scratch memory of the engines on the GPU, weights apart: distilled fp32 on local 4.1 MB.",
        "MACs of distilled: torch counts 3 more.",
    ):
        assert note in report.md
        assert note in report.page().text


def test_csv_has_every_row_of_every_profile_in_full_precision(made: HandMadeRun) -> None:
    rows = list(csv.DictReader(made.report().csv.splitlines()))
    assert [(row["role"], row["scenario"]) for row in rows] == [
        (role, scenario) for role in ROLES for scenario in ("single_stream", "offline")
    ]
    row = rows[4]
    assert float(row["latency_p50_ms"]) == 0.61234567
    assert float(row["throughput_images_per_s"]) == 1234.5678901234
    assert float(rows[5]["throughput_images_per_s"]) == 4000.25
    assert row["latency_p99_ms"] == ""
    assert (row["batch"], rows[5]["batch"]) == ("1", "8")
    assert (row["top1_percent"], row["macs"], row["seed"], row["recipe"]) == ("85.2", "12500000", "17", "tiny")
    assert (row["config_digest"], row["runtime_version"]) == ("dd" * 32, "1.32.0")


def test_accuracy_detail_of_the_trained_weights(made: HandMadeRun) -> None:
    tables = made.report().tables()
    assert "Beside published results" not in tables
    assert tables["Accuracy of the trained weights"][1] == {
        "Model": "distilled",
        "Architecture": "resnet8",
        "Test, last epoch": "86.10 %",
        "Test, selected epoch": "86.40 %",
        "Held-out, selected": "87.75 %",
        "Selected epoch": "2 of 3",
    }
    assert "one run with seed 17. A single run has no spread" in made.report().md


def test_published_numbers_stand_beside_ours_and_rivals_apart(made: HandMadeRun) -> None:
    recipe = load_recipe("cifar100-resnet56-resnet20")[1]
    report = made.report(expected={name: dataclasses.asdict(found) for name, found in recipe.expected.items()})
    assert [tuple(row.values()) for row in report.tables()["Beside published results"]] == [
        ("teacher resnet20", "89.50 %", "72.34 %", "published, CRD benchmark"),
        ("distilled resnet8 (afpkd)", "86.40 %", "-", "measured here only"),
        ("undistilled resnet8", "85.20 %", "69.06 %", "published, CRD benchmark"),
        ("kd", "-", "70.66 %", "published, CRD benchmark"),
        ("dkd", "-", "71.97 %", "published, DKD, Zhao et al. 2022"),
        ("reviewkd", "-", "71.89 %", "published, ReviewKD, Chen et al. 2021"),
        ("catkd", "-", "71.62 %", "published, CAT-KD, Guo et al. 2023"),
    ]
    assert "Epochs here: teacher 3, distilled 3, undistilled 3." in report.md
    assert report.page().tags.count(("tr", {"class": "foreign"})) == 4


def test_a_rivals_published_number_stands_beside_our_run_of_the_rival(made: HandMadeRun) -> None:
    made.put_record("student", method="reviewkd")
    report = made.report(expected={"reviewkd": {"top1": 86.5}, "kd": {"top1": 86.25, "source": "A Paper 2021"}})
    rows = [tuple(row.values()) for row in report.tables()["Beside published results"]]
    assert rows[1] == ("distilled resnet8 (reviewkd)", "86.40 %", "86.50 %", "published, by whom is not said")
    assert rows[3:] == [("kd", "-", "86.25 %", "published, A Paper 2021")]


def test_protocol_and_provenance_are_told(made: HandMadeRun) -> None:
    report = made.report()
    seen = report.page().text
    for words in (
        "On local (Example CPU @ 2 GHz, 2 CPUs, Linux-6.1-x86_64): onnxruntime 1.32.0, threads 2, single stream",
        "preset quick",
        "Warm-up, not timed: at least 1 s and 50 calls",
        "Percentiles: nearest rank",
        "Samples: teacher fp32 n = 431, distilled fp32 n = 431",
        "make distill export profile RECIPE=tiny",
        "python 3.11.2",
        "torch 2.14.1",
    ):
        assert words in report.md
        assert words in seen
    row = report.tables()["Provenance"][1]
    assert (row["Record"], row["Seed"], row["Config digest"]) == ("student/record.json", "17", "c0ffeec0ffee")
    assert (row["Git commit"], row["Inputs (sha256)"]) == ("0123456789ab+", "data da7ada7ada7a, prompts 9a9e9a9e9a9e")
    assert (row["Outputs (sha256)"], row["Finished (UTC)"]) == ("model.safetensors beefbeefbeef", "2026-01-02 03:04")


def test_clocks_power_mode_and_system_of_a_board_are_told(made: HandMadeRun) -> None:
    at = {"clocks": "locked", "power_mode": "pmode:0002"}
    board = {"board": {"l4t": "36.4.3", "jetpack": "6.2", "cuda": None}}
    profile = profile_record("student")
    rows = [{**row, **at} for row in profile["rows"]] + [{**profile["rows"][0], "clocks": "mode:3", "power_mode": "3"}]
    made.put_profile("student", rows=rows, machine=MACHINE | board, **at)
    report = made.report()
    assert "2 CPUs, Linux-6.1-x86_64, L4T 36.4.3, JetPack 6.2): onnxruntime" in report.md
    assert "preset quick, clocks locked, power mode pmode:0002." in report.md
    others = {row["Scenario"] for row in report.tables()["Other scenarios"]}
    assert others == {"offline, batch 8", "single stream, clocks mode:3, power mode 3"}
    told = [(row["clocks"], row["power_mode"]) for row in csv.DictReader(report.csv.splitlines())]
    assert (told.count(("locked", "pmode:0002")), told.count(("mode:3", "3"))) == (2, 1)


def test_what_may_differ_elsewhere_is_told_of_what_the_report_holds(made: HandMadeRun) -> None:
    """Of measurements alone; of trainings with how they were called; of a GPU."""
    told = "On another machine: latencies, energy and verdicts are of the machine, its clocks and its load"
    alone = made.report()
    assert told in alone.md
    assert told in alone.page().text
    assert "The same seed gives" not in alone.md
    made.put_record("teacher", device="cpu", threads=1)
    made.put_record("student", device="cpu", threads=0, processes=2)
    both = made.report()
    assert "(here: cpu, threads 1; cpu, threads torch's own, processes 2), on a CPU" in both.md
    assert "on the same GPU, too" not in both.md
    made.put_record("student", device="cuda:0", threads=0)
    third = made.report()
    assert "(here: cpu, threads 1; cuda:0, threads torch's own), on a CPU" in third.md
    assert "What was trained on a GPU may differ on the same GPU, too" in third.page().text


def test_html_asks_nothing_of_the_network(made: HandMadeRun) -> None:
    page = made.report().page()
    bundle = get_plotlyjs().strip()
    own = [script for script in page.scripts if script.strip() != bundle]
    assert len(page.scripts) - len(own) == 1
    assert not re.search(r"https?://|url\(|@import|//[a-z]", "".join(own + page.styles))
    addresses = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    # an empty icon, or the browser would ask for one; a file beside the page, for who clicks on it
    assert addresses == ["data:,", "report.cdx.json"]
    policies = [a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules.pop("default-src") == "'none'"
    assert set(rules.values()) <= {"'none'", "'unsafe-inline'", "data:"}  # plotly.js itself is held by this


def test_html_without_pictures_carries_no_plotly(made: HandMadeRun) -> None:
    for path in [*(made.folder / "profiles").glob("*/*.json"), *made.folder.glob("*/metrics.jsonl")]:
        path.unlink()
    report = made.report()
    assert len(report.page().scripts) == 1  # what sorts the tables
    assert len(report.html) < 60_000


@pytest.mark.parametrize("verdict", ["VALID", "WARN"])
def test_hostile_text_stays_text(made: HandMadeRun, verdict: str) -> None:
    num_scripts = len(made.report().page().scripts)
    for role in ROLES:
        made.put_record(role, arch=HOSTILE, method=HOSTILE, config_digest=HOSTILE, outputs={HOSTILE: HOSTILE})
        made.put_profile(role, arch=HOSTILE, verdict=verdict, reasons=[HOSTILE], preset=HOSTILE)
    report = made.report(description=HOSTILE, expected={HOSTILE: {"top1": 1.0, "source": HOSTILE}})
    page = report.page()
    assert len(page.scripts) == num_scripts
    assert 'alert("x")' not in "".join(page.scripts)
    assert page.text.count(HOSTILE) > 8
    assert "<script" not in report.md
    assert report.tables()["Models"][0]["Reasons"] == r'&lt;script>alert("x")&lt;/script>\|\`a\`'


def test_same_records_give_the_same_report(made: HandMadeRun) -> None:
    first = made.report()
    png = (made.folder / "report.png").read_bytes()
    assert made.report() == first
    assert (made.folder / "report.png").read_bytes() == png
    assert png.startswith(b"\x89PNG")
    assert not list(made.folder.glob(".report*"))


def test_the_report_needs_neither_torch_nor_a_second_of_imports() -> None:
    code = "import sys, pipeline.report.writing; sys.exit(len({'torch', 'scipy.stats'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_exported_files_stand_with_their_error_and_their_budget(made: HandMadeRun) -> None:
    made.put_manifest("student", "bb" * 32)
    path = made.folder / "student" / "bundle" / "manifest.json"
    manifest = read_record(path)
    found = {"top1": 80.125, "drop": 6.275, "sqnr_db": 12.34, "argmax_agreement": 91.5, "status": "over budget"}
    manifest["verification"] = {"int8.onnx": bundle_check(**found, reason="int8 loses 6.28 points of top-1")}
    manifest["files"].append(bundle_file("int8", "0" * 64, size_bytes=123_000))
    manifest["build_check"] = {"int8.onnx": {"status": "built"}}
    write_record(path, manifest)
    report = made.report()
    (row,) = report.tables()["Exported files"]
    assert row == {
        "Model": "distilled",
        "File": "int8.onnx",
        "Size": "123 kB",
        "Top-1": "80.12 %",
        "Against float32": "-6.28",
        "SQNR (dB)": "12.3",
        "Same class": "91.50 %",
        "Build": "built",
        "Status": "over budget: int8 loses 6.28 points of top-1",
    }
    assert "over budget: int8 loses" in report.page().text


def test_a_detectors_page_is_about_ap(made: HandMadeRun) -> None:
    """Headline, table, front, axis and CSV: nowhere is a detector judged by a top-1 that it has not."""
    scores = {"teacher": 42.0, "student": 38.5, "undistilled": 35.25}
    for role, ap in scores.items():
        metrics = {"test_ap_last": ap - 1, "test_ap_selected": ap, "heldout_ap": ap + 1}
        made.put_record(role, task="detection", metrics=metrics)
        made.put_profile(role, top1=None, top1_interval=None, ap=ap, ap50=2 * ap, ap75=ap)
        path = made.folder / "profiles" / "local" / f"{role}-fp32.json"
        profile = read_record(path)
        profile["rows"][0] |= {"ap": ap, "ap50": 2 * ap, "ap75": ap}
        write_record(path, profile)
        epochs = [{"epoch": n, "step": n, "lr": 0.1, "heldout_ap": ap + n} for n in (1, 2)]
        (made.folder / role / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    prompts = {"schema": "afpkd.prompts/1", "metrics": {"teacher_heldout_ap": 43.0, "prompted_heldout_ap": 42.5}}
    write_record(made.folder / "prompts" / "record.json", prompts)
    report = made.report()
    text = report.page().text
    assert headline(made.records()).sentence.startswith("The distilled student (resnet8) reaches 38.50 % AP: ")
    assert "+3.25 points against the same network undistilled: no interval is known, so not how much of it is " in text
    assert "38.50 % AP · p50 0.600 ms" in text
    rows = {row["Model"]: row for row in report.tables()["Models"]}
    assert {model: row["AP (%)"] for model, row in rows.items()} == {
        "teacher": "42.00",
        "distilled": "38.50",
        "undistilled": "35.25",
    }
    assert report.json["recommended"][0]["file"]["role"] == "student"
    student = next(row for row in report.json["candidates"] if row["role"] == "student")
    assert (student["metric"], student["accuracy"]) == ("ap", {"value": 38.5, "low": None, "high": None})
    (row,) = [row for row in csv.DictReader(report.csv.splitlines()) if row["role"] == "student"][:1]
    assert (row["ap_percent"], row["top1_percent"]) == ("38.5", "")
    assert "test AP (%)" in "".join(report.page().scripts)
    assert "top-1" not in text.lower()
