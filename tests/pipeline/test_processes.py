"""Training stages in several processes through the command line: real torchrun, real kills, one line for a failure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from afpkd.checkpoint import load_training_state
from afpkd.errors import UserError
from afpkd.record import Json, read_record
from bench.loopback import wait_until
from pipeline.lineage import lineage
from pipeline.locks import locked
from pipeline.processes import _first_of, require_gpus, require_processes
from pipeline.recipe_reader import load_recipe
from tests.tiny import FEW, tiny_recipe

STAGES = ("teacher", "prompts", "student", "undistilled")


def _write(folder: Path, epochs: int = 2) -> Path:
    path = folder / "tiny.toml"
    path.write_text(tiny_recipe(heldout=FEW, teacher_epochs=epochs, epochs=epochs))
    return path


def _start(*arguments: str, recipe: Path, runs: Path, processes: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", *arguments, "--recipe", str(recipe), "--runs", str(runs)]
    command += ["--train-device", "cpu", "--train-processes", str(processes), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(*arguments: str, recipe: Path, runs: Path, processes: int = 2) -> tuple[Json, str]:
    process = _start(*arguments, recipe=recipe, runs=runs, processes=processes)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    found: Json = json.loads(output)
    return found, errors


def _workers(runs: Path) -> dict[int, int]:
    """Rank and process of all that train below this folder."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes().split(b"\0")
            ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
            if ranks and str(runs).encode() in command:
                found[ranks[0]] = int(folder.name)
    return found


@pytest.mark.slow
def test_a_run_in_two_processes_is_the_same_run(tmp_path: Path) -> None:
    recipe, runs = _write(tmp_path), tmp_path / "runs"
    facts, errors = _run("run", "distill", recipe=recipe, runs=runs)
    assert "2 x cpu" in errors
    assert sum(" epoch   1 " in line for line in errors.splitlines()) == len(STAGES)  # each is said once
    assert lineage(runs / "tiny").faults == []
    records = {stage: read_record(runs / "tiny" / stage / "record.json") for stage in STAGES}
    assert {record["processes"] for record in records.values()} == {2}
    assert facts["roles"]["undistilled"]["metrics"]["test_top1_selected"] > 20
    lines = (runs / "tiny" / "student" / "metrics.jsonl").read_text().splitlines()
    for name in ("task", "frequency", "spatial"):  # so few steps say nothing of a distilled student's accuracy
        first, last = (json.loads(line)["losses"][name] for line in lines)
        assert last < first
    left = {path.name for stage in STAGES for path in (runs / "tiny" / stage).glob("[!.]*") if path.suffix != ".png"}
    assert left == {"model.safetensors", "metrics.jsonl", "record.json"}

    _run("run", "distill", recipe=recipe, runs=runs, processes=1)  # the number of processes is no reason to run again
    again = {stage: read_record(runs / "tiny" / stage / "record.json") for stage in STAGES}
    assert again == records


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_one_process_continues_it(tmp_path: Path) -> None:
    recipe, runs = _write(tmp_path, epochs=4), tmp_path / "runs"
    process = _start("train-undistilled", recipe=recipe, runs=runs)
    checkpoint = runs / "tiny" / "undistilled" / "checkpoint.pt"
    wait_until(checkpoint.exists, "a checkpoint is there", 240, process)
    os.kill(_workers(runs)[1], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.splitlines()[-1] == (
        "error: undistilled: training process 2 of 2 was ended by SIGKILL (out of memory?): "
        "run it again: it continues from its last checkpoint [E_TRAIN_STOPPED]"
    )
    assert "Traceback" not in errors
    assert not _workers(runs)
    saved = torch.load(checkpoint, weights_only=True)
    assert load_training_state(checkpoint, saved["digest"]) is not None
    done = len(saved["history"])
    record, errors = _run("train-undistilled", recipe=recipe, runs=runs, processes=1)
    assert [f" epoch {number:>3} " in errors for number in (1, done, 4)] == [False, False, True]
    assert (record["epochs"], record["processes"]) == (4, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_takes_its_processes_with_it(number: signal.Signals, tmp_path: Path) -> None:
    recipe, runs = _write(tmp_path, epochs=50), tmp_path / "runs"
    process = _start("train-undistilled", recipe=recipe, runs=runs)
    checkpoint = runs / "tiny" / "undistilled" / "checkpoint.pt"
    wait_until(checkpoint.exists, "a checkpoint is there", 240, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in errors
    assert "Error" not in errors
    wait_until(lambda: not _workers(runs), "no worker lives on", 240)


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    recipe, runs = _write(tmp_path, epochs=50), tmp_path / "runs"
    process = _start("run", "distill", recipe=recipe, runs=runs)
    wait_until(lambda: len(_workers(runs)) == 2, "both workers are there", 240, process)
    process.kill()
    process.communicate()
    wait_until(lambda: not _workers(runs), "no worker lives on", 240)
    with locked(runs):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train-undistilled", "tune-prompts"])
def test_a_mistake_that_both_see_is_said_once(stage: str, tmp_path: Path) -> None:
    recipe, runs = _write(tmp_path), tmp_path / "runs"
    if stage == "train-undistilled":
        recipe.write_text(recipe.read_text().replace("[distill]", "[distill]\nlr = 1e30"))
    process = _start(stage, recipe=recipe, runs=runs)
    _, errors = process.communicate()
    assert process.returncode == 2
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert ("training diverged" if stage == "train-undistilled" else "no such record: run the stage") in said[0]
    assert said[0].endswith("[E_TRAIN_DIVERGED]" if stage == "train-undistilled" else "[E_RUN_MISSING]")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "distill", "--train-processes", "3"], "TRAIN_PROCESSES=3: teacher.batch_size = 32 is that of all"),
        (["train-student", "--train-processes", "3"], "TRAIN_PROCESSES=3: teacher.batch_size = 32 is that of all"),
        (["run", "distill", "--train-processes", "0"], "TRAIN_PROCESSES=0: one process or more was expected"),
    ],
)
def test_a_wrong_number_is_one_line_and_nothing_starts(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_more_processes_than_gpus_are_one_line() -> None:
    require_gpus(2, 2)
    require_gpus(1, 0)
    with pytest.raises(UserError, match=r"TRAIN_PROCESSES=4: each takes a GPU, and here is 1: use TRAIN_PROCESSES=1"):
        require_gpus(4, 1)


def test_a_foreign_teacher_has_no_batch_to_share() -> None:
    recipe = load_recipe("cifar100-resnet56-resnet20-cpu")[1]
    require_processes(2, recipe, "cpu")
    with pytest.raises(UserError, match=r"TRAIN_PROCESSES=3: prompts\.batch_size = "):
        require_processes(3, recipe, "cpu")


def test_a_phase_that_the_method_has_not_asks_for_nothing(tmp_path: Path) -> None:
    text = 'extends = "default"\n[teacher]\nbatch_size = 48\n[distill]\nbatch_size = 48\n'
    (tmp_path / "ours.toml").write_text(text)
    with pytest.raises(UserError, match=r"prompts\.batch_size = 64"):
        require_processes(3, load_recipe(str(tmp_path / "ours.toml"))[1], "cpu")
    (tmp_path / "kd.toml").write_text(text + 'method = "kd"\n')
    require_processes(3, load_recipe(str(tmp_path / "kd.toml"))[1], "cpu")


def _failure(folder: Path, rank: int, exitcode: int, left: Json | None = None) -> ProcessFailure:
    file = folder / f"{rank}.json"
    if left is not None:
        file.write_text(json.dumps({"timestamp": 5, "code": None, **left}))
    return ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=exitcode, error_file=str(file))


PEER = {"message": "RuntimeError('Connection closed by peer')", "traceback": "Traceback: peer\n"}


def test_the_cause_is_said_and_not_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process whose peer has gone fails in the midst of an exchange, or is terminated."""
    peer, ended = _failure(tmp_path, 0, 2, PEER), _failure(tmp_path, 3, -signal.SIGTERM)
    killed = _failure(tmp_path, 1, -signal.SIGKILL)
    said = _first_of("student", {0: peer, 1: killed, 3: ended}, 4)
    assert said.code == "E_TRAIN_STOPPED"
    assert said.message.startswith(
        "student: training process 2 of 4 was ended by SIGKILL (out of memory?): run it again"
    )
    mistake = _failure(tmp_path, 2, 2, {"message": "no such file", "code": "E_TOML", "traceback": ""})
    assert _first_of("student", {0: peer, 1: killed, 2: mistake, 3: ended}, 4).args == ("E_TOML", "no such file")
    assert capsys.readouterr().err == ""
    said = _first_of("student", {3: ended, 0: peer}, 4)
    assert said.message == f"student: training process 1 of 4 failed: {PEER['message']}"
    assert capsys.readouterr().err == "Traceback: peer\n"  # a fault of ours keeps it
    silent = _failure(tmp_path, 4, 7)
    said = _first_of("student", {3: ended, 4: silent}, 5)
    assert said.message.startswith("student: training process 5 of 5 ended with exit code 7")
