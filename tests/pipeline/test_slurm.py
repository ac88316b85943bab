"""A sweep of four tiny recipes on a real Slurm of one node, to the report; one training process is killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from afpkd.record import read_record, sha256_of
from pipeline.lineage import lineage
from tests.pipeline import slurm
from tests.pipeline.executors import with_executors
from tests.tiny import FP32, tiny_recipe

POINTS = [f"tiny.kd_weight={weight}" for weight in ("0.5", "1", "2", "4")]
pytestmark = pytest.mark.xdist_group("slurm")  # one machine has one
KILLED = POINTS[0]  # the first that is trained


class Ended(NamedTuple):
    """What a sweep left."""

    runs: Path
    stdout: str
    stderr: str
    log: str


@pytest.fixture(name="ended", scope="module")
def _ended(brief: None, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    environment = with_executors()
    if why := slurm.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("cluster")
    recipe = tiny_recipe(heldout=3400, epochs=3, more=f'method = "kd"\n{FP32}')
    (folder / "tiny.toml").write_text(recipe)
    runs, trained = folder / "runs", ("teacher", "undistilled", "student")
    small = [
        *("--default-resources", "mem_mb=500", "runtime=5", "--set-threads", *(f"{rule}=1" for rule in trained)),
        *("--set-resources", *(f"{rule}:mem_mb=500" for rule in trained), "--latency-wait", "5"),
        # no accounting data base here; the executor looks after 9 s, 19 s later, 29 s later, and so on
        *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "9"),
    ]
    command = [sys.executable, "-m", "pipeline", "sweep", str(folder / "tiny.toml")]
    command += ["--set", "distill.kd_weight=0.5,1,2,4", "--runs", str(runs), "--train-device", "cpu"]
    command += ["--cluster", "slurm", "--snakemake", " ".join(small), "--json"]
    (folder / "slurm").mkdir()
    with slurm.one_node(folder / "slurm"), (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        _kill_one_training(runs, process)
        stdout = process.communicate()[0]
    said, log = (folder / "errors").read_text(), (runs / "snakemake.log").read_text(errors="replace")
    assert process.returncode == 0, f"{said}\n{log}"
    return Ended(runs, stdout, said, log)


def _kill_one_training(runs: Path, process: subprocess.Popen[str], seconds: float = 240) -> None:
    """SIGKILL to the student of one point after its first epoch, when there is a checkpoint."""
    deadline = time.monotonic() + seconds
    while not any("epoch   1" in text for text in _said(runs, KILLED, "student")):
        assert process.poll() is None, "the sweep ended before anything was killed"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = command.read_bytes().decode(errors="replace").split("\0")
            if words[1:4] == ["-m", "pipeline", "train-student"] and str(runs / KILLED / f"{KILLED}.toml") in words:
                os.kill(int(command.parent.name), signal.SIGKILL)


def _said(runs: Path, point: str, stage: str) -> list[str]:
    with suppress(FileNotFoundError):
        events = [json.loads(line) for line in (runs / point / "events.jsonl").read_text().splitlines()]
        return [event["text"] for event in events if event["stage"] == stage and "text" in event]
    return []


@pytest.mark.slow
def test_a_sweep_of_four_recipes_runs_on_slurm_to_the_report(ended: Ended) -> None:
    found = json.loads(ended.stdout)
    assert [point["name"] for point in found["points"]] == POINTS
    assert [row["settings"]["distill.kd_weight"] for row in found["rows"]] == [0.5, 1, 2, 4]
    assert json.loads((ended.runs / "comparison" / "report.json").read_text())["recipes"] == POINTS
    for point, row in zip(POINTS, found["rows"], strict=True):
        record = read_record(ended.runs / point / "student" / "record.json")
        assert row["roles"]["student"]["mean"] == record["metrics"]["test_top1_selected"]
        assert lineage(ended.runs / point).faults == []
    assert len({sha256_of(ended.runs / point / "student" / "model.safetensors") for point in POINTS}) == 4
    teachers = [read_record(ended.runs / point / "teacher" / "record.json") for point in POINTS]
    assert [record.get("shared_from") for record in teachers] == [None, POINTS[0], POINTS[0], POINTS[0]]
    # one teacher, one undistilled student, four students and one of them again: nothing else went to the cluster
    assert len(re.findall(r"has been submitted with SLURM jobid \d+", ended.log)) == 7


@pytest.mark.slow
def test_a_killed_job_is_sent_again_and_continues_from_its_checkpoint(ended: Ended) -> None:
    said = _said(ended.runs, KILLED, "student")
    starts = [text for text in said if text.endswith("epochs of 600 images on cpu")]
    assert len(starts) == 2, said
    steps_an_epoch = 600 // 32
    (step,) = (int(found[1]) for text in said if (found := re.match(r"continues at step (\d+) of", text)))
    assert step >= steps_an_epoch
    epochs = [int(text.split()[1]) for text in said if text.startswith("epoch ")]
    assert epochs == sorted(set(epochs)), "none twice"
    rows = (ended.runs / KILLED / "student" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3]
    assert "Traceback" not in ended.stderr
