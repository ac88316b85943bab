"""The whole chain on a tiny recipe, as a user runs it: real stages, real Snakemake, real kills."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from afpkd.errors import UserError
from afpkd.record import read_record, sha256_of
from bench.loopback import wait_until
from bench.scale import idle_cost
from export.sealed import verify_bundle
from pipeline.graph import stage_call
from pipeline.lineage import STAGES, lineage
from pipeline.locks import locked
from pipeline.parent import PARENT_VARIABLE
from pipeline.recipe import ROLES
from pipeline.recipe_reader import load_recipe
from pipeline.report import KINDS
from pipeline.stages import export_bundle, train_student, tune_prompts
from pipeline.workspace import Run, open_run
from tests.tiny import FEW, tiny_recipe


def _write(folder: Path, *, epochs: float = 0.2, opset: int = 18) -> Path:
    export = f'[export]\nopset = {opset}\nprecisions = ["fp32", "int8"]\n'
    path = folder / "tiny.toml"
    path.write_text(tiny_recipe(heldout=FEW if epochs >= 1 else 400, epochs=epochs, more=export))
    return path


def _start(*goals: str, recipe: Path, runs: Path, others: Sequence[Path] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", "run", *goals, "--recipe", str(recipe), "--runs", str(runs)]
    command += ["--train-device", "cpu", "--json", *(word for other in others for word in ("--recipe", str(other)))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _run(*goals: str, recipe: Path, runs: Path, others: Sequence[Path] = ()) -> Any:
    process = _start(*goals, recipe=recipe, runs=runs, others=others)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(output)


def _finished(runs: Path, name: str = "tiny") -> dict[str, str]:
    """When each stage's record was last made."""
    return {stage: read_record(runs / name / stage / "record.json")["finished_at"] for stage in STAGES}


@pytest.fixture(name="done", scope="module")
def _done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("whole chain")  # with a space: paths are quoted
    recipe, runs = _write(folder), folder / "runs"
    facts = _run("distill", "export", "profile", recipe=recipe, runs=runs)
    assert facts["report"] == str(runs / "tiny" / "report.html")
    return recipe, runs


@pytest.mark.slow
def test_the_chain_leaves_records_that_trace_every_number(done: tuple[Path, Path]) -> None:
    folder = done[1] / "tiny"
    for role in ROLES:
        record = read_record(folder / role / "record.json")
        weights = folder / role / "model.safetensors"
        assert record["outputs"] == {
            name: sha256_of(folder / role / name) for name in ("model.safetensors", "metrics.jsonl")
        }
        assert 0 <= record["metrics"]["test_top1_selected"] <= 100
        assert {"arch", "num_params", "seed", "config_digest", "inputs", "versions", "git_commit", "wall_s"} <= set(
            record
        )
        manifest = read_record(folder / role / "bundle" / "manifest.json")
        assert manifest["lineage"]["weights"] == sha256_of(weights)
        # the exported file is as accurate as the network, to the image
        assert manifest["verification"]["fp32.onnx"]["top1"] == record["metrics"]["test_top1_selected"]
        verify_bundle(folder / role / "bundle")
        origin = manifest["lineage"]
        assert origin["teacher"] == record["inputs"].get("teacher")
        assert origin["prompts"] == record["inputs"].get("prompts")
        assert (origin["calibration"]["source"], origin["calibration"]["num"]) == ("train", 512)
        int8 = read_record(folder / "profiles" / "local" / f"{role}-int8.json")
        assert sorted(row["mode"] for row in int8["rows"]) == ["default", "precise"]
        profile = read_record(folder / "profiles" / "local" / f"{role}-fp32.json")
        assert profile["top1"] == record["metrics"]["test_top1_selected"]
        assert profile["macs"] == manifest["macs"]["macs"] > 1e6
        assert profile["verdict"] in ("VALID", "WARN", "INVALID")
        assert profile["latency_ms"]["p50"] > 0
    student = read_record(folder / "student" / "record.json")["inputs"]
    assert student["teacher"] == sha256_of(folder / "teacher" / "model.safetensors")
    assert student["prompts"] == sha256_of(folder / "prompts" / "model.safetensors")
    assert all((folder / f"report.{kind}").stat().st_size > 500 for kind in KINDS)
    assert not list(folder.glob("*/checkpoint.pt"))


@pytest.mark.slow
def test_every_artifact_of_the_chain_is_vouched_for(done: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(done[1] / "tiny", folder)
    assert lineage(folder).faults == []
    weights = [folder / stage / "model.safetensors" for stage in STAGES]
    samples = sorted(folder.glob("profiles/local/*.npz"))
    curves, pictures = sorted(folder.glob("*/metrics.jsonl")), sorted(folder.glob("prompts/level*.png"))
    assert len(curves) == len(STAGES)
    assert pictures
    for path in [*weights, *samples, *curves, *pictures, *(folder / "student" / "bundle").iterdir()]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert any(str(path) in fault for fault in lineage(folder).faults), path
        path.write_bytes(content)


@pytest.mark.slow
def test_a_stage_refuses_what_was_changed_since_and_writes_nothing(done: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1] / "tiny", tmp_path / "tiny")
    run = open_run(str(done[0]), tmp_path, device="cpu")
    stages_of: dict[str, list[Callable[[Run], object]]] = {
        "teacher": [tune_prompts, train_student, lambda run: export_bundle(run, "teacher")],
        "prompts": [train_student],
        "student": [lambda run: export_bundle(run, "student")],
    }
    for feeder, stages in stages_of.items():
        path = run.role(feeder) / "model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        before = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
        for stage in stages:
            with pytest.raises(UserError, match=rf"{feeder}/model\.safetensors: its bytes are not those that were"):
                stage(run)
        assert {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()} == before
        path.write_bytes(content)


def test_a_stage_that_is_interrupted_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Called alone; within a run the run says it."""
    with pytest.raises(SystemExit) as ended, stage_call("student", tmp_path):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "interrupted: finished stages stay, training continues from its last checkpoint: run it again"
    )


def test_every_stage_is_told_which_recipe_it_is_of_and_a_device_named_twice_is_one(tmp_path: Path) -> None:
    recipe, runs = _write(tmp_path), tmp_path / "runs"
    dry = ["--device", "local local", "--snakemake=--dry-run --printshellcmds"]
    command = [sys.executable, "-m", "pipeline", "run", "profile", "--recipe", str(recipe), "--runs", str(runs), *dry]
    subprocess.run([*command, "--train-device", "cpu"], check=True, capture_output=True)
    calls = re.findall(r"-m pipeline (\S+) .*", (runs / "tiny" / "snakemake.log").read_text())
    told = re.findall(r"-m pipeline (\S+) .* --digest (\w+)", (runs / "tiny" / "snakemake.log").read_text())
    assert len(told) == len(calls) - 1  # all but the report, which is of records
    stages = {"train-teacher": "teacher", "tune-prompts": "prompts", "train-student": "student"}
    stages |= {"train-undistilled": "undistilled", "export": "export", "profile": "profile"}
    decoded = load_recipe(str(recipe))[1]
    assert set(told) == {(verb, decoded.stage_digest(stage)) for verb, stage in stages.items()}


@pytest.mark.slow
def test_prompts_that_choose_nothing_stop_the_run(done: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(done[1], tmp_path / "runs")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(done[0].read_text().replace("must_choose = false", "must_choose = true"))
    process = _start("distill", recipe=recipe, runs=tmp_path / "runs")
    errors = process.communicate()[1]
    assert process.returncode == 2
    assert "error: tiny: prompts: " in errors
    assert "or set must_choose = false" in errors
    assert not (tmp_path / "runs" / "tiny" / "student" / "record.json").exists()
    kept = tmp_path / "runs" / "tiny" / "prompts" / "record.json"  # the mend trains no prompts again
    assert read_record(kept)["finished_at"] == _finished(done[1])["prompts"]


@pytest.mark.slow
def test_two_recipes_share_what_is_the_same_and_are_compared(done: tuple[Path, Path]) -> None:
    recipe, runs = done
    other = recipe.parent / "other.toml"
    other.write_text('extends = "tiny.toml"\n[distill]\nmu = 1.0\n')
    before = _finished(runs)
    found = _run("distill", recipe=recipe, others=[other], runs=runs)
    assert [Path(run["run"]).name for run in found] == ["tiny", "other"]
    assert _finished(runs) == before
    shared = {stage: read_record(runs / "other" / stage / "record.json").get("shared_from") for stage in STAGES}
    assert shared == {"teacher": "tiny", "prompts": "tiny", "student": None, "undistilled": "tiny"}
    weights = [[sha256_of(runs / name / stage / "model.safetensors") for name in ("tiny", "other")] for stage in STAGES]
    assert [mine == others for mine, others in weights] == [True, True, False, True]
    assert lineage(runs / "other").faults == []
    assert json.loads((runs / "comparison" / "report.json").read_text())["recipes"] == ["tiny", "other"]

    mine, page = _finished(runs, "other"), (runs / "comparison" / "report.html").stat().st_mtime_ns
    _run("distill", recipe=other, runs=runs)  # alone, it needs nothing of the recipe that it took stages from
    _run("distill", recipe=recipe, others=[other], runs=runs)
    assert (_finished(runs, "other"), _finished(runs)) == (mine, before)
    assert (runs / "comparison" / "report.html").stat().st_mtime_ns == page


@pytest.mark.slow
def test_only_what_changed_runs_again(done: tuple[Path, Path]) -> None:
    recipe, runs = done
    before = _finished(runs)
    reports = (runs / "tiny" / "report.html").stat().st_mtime_ns
    for record in runs.glob("tiny/*/record.json"):
        record.touch()  # a timestamp is no reason
    _run("profile", recipe=recipe, runs=runs)
    assert _finished(runs) == before
    assert (runs / "tiny" / "report.html").stat().st_mtime_ns == reports

    exported = (runs / "tiny" / "teacher" / "bundle" / "manifest.json").stat().st_mtime_ns
    _run("export", recipe=_write(recipe.parent, opset=19), runs=runs)
    assert _finished(runs) == before
    assert (runs / "tiny" / "teacher" / "bundle" / "manifest.json").stat().st_mtime_ns > exported

    _run("distill", recipe=_write(recipe.parent, epochs=0.1), runs=runs)
    after = _finished(runs)
    changed = {stage for stage in after if after[stage] != before[stage]}
    assert changed == {"student", "undistilled"}


@pytest.mark.slow
def test_a_run_with_nothing_to_do_is_measured_and_only_that(done: tuple[Path, Path], tmp_path: Path) -> None:
    finished = done[1] / "tiny"
    before = _finished(done[1])
    cost = idle_cost(finished, tmp_path / "idle", 1)
    assert cost["recipes"] == 1
    assert cost["seconds"] > 0
    assert _finished(done[1]) == before
    assert not (tmp_path / "idle").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_no_stage_behind(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = _start("distill", recipe=_write(tmp_path, epochs=50), runs=runs)
    wait_until(lambda: _epochs(runs, "undistilled") >= 1, "an epoch has ended", 240, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    last = errors.splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert last.endswith(": run it again")
    assert "Traceback" not in errors
    wait_until(lambda: not _stages_alive(runs), "no stage lives on", 240)
    with locked(runs):
        pass


def _epochs(runs: Path, stage: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        events = [json.loads(line) for line in (runs / "tiny" / "events.jsonl").read_text().splitlines()]
        return sum(event["stage"] == stage and event.get("text", "").startswith("epoch") for event in events)
    return 0


def _stages_alive(runs: Path) -> list[str]:
    alive = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = command.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "-m pipeline train-" in text and (command.parent / "cwd").resolve() == runs.resolve():
                alive.append(text)
    return alive


@pytest.mark.parametrize(("on_a_node", "code"), [(False, -signal.SIGKILL), (True, 0)])
def test_a_process_ends_with_its_parent_but_a_clusters_job_with_the_cluster(on_a_node: bool, code: int) -> None:
    program = f"from pipeline.parent import die_with_parent; die_with_parent(on_a_node={on_a_node})"
    environment = {**os.environ, PARENT_VARIABLE: "1"}  # long gone, or on another machine
    assert subprocess.run([sys.executable, "-c", program], check=False, env=environment).returncode == code


@pytest.mark.slow
def test_a_weak_teacher_stops_the_run_with_one_line(tmp_path: Path) -> None:
    recipe = _write(tmp_path)
    recipe.write_text(recipe.read_text().replace("min_top1 = 0.0", "min_top1 = 99.5"))
    process = _start("distill", recipe=recipe, runs=tmp_path / "runs")
    _, errors = process.communicate()
    assert process.returncode == 2
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "the teacher's test top-1 is " in said[0]
    assert "below teacher.min_top1 = 99.5" in said[0]
    assert "Traceback" not in errors
    assert not (tmp_path / "runs" / "tiny" / "student" / "record.json").exists()
