"""`afpkd watch`: the trainings of a run from another shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from afpkd.errors import UserError
from afpkd.record import Json, write_record
from pipeline.holder import HOLDER
from pipeline.live import EPOCHS, NOW
from pipeline.locks import locked
from pipeline.watch import State, curve, is_going_on, text_of, trainings
from tests.pipeline.conftest import HandMadeRun
from tests.pipeline.terminal import CTRL_C, Terminal

ROOT = Path(__file__).parent.parent.parent
WATCH = [sys.executable, "-m", "pipeline", "watch"]


def row(epoch: int, task: float, top1: float) -> Json:
    losses = {"task": task, "frequency": 2 * task}
    return {"epoch": epoch, "step": 100 * epoch, "losses": losses, "heldout_top1": top1, "images_per_s": 900.0}


def put(folder: Path, rows: list[Json], pid: int | None, **now: object) -> None:
    """What a training of 4 epochs leaves; pid None: it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    name = EPOCHS if pid else "metrics.jsonl"
    (folder / name).write_text("".join(json.dumps(found) + "\n" for found in rows))
    if pid is None:
        metrics = {"test_top1_selected": 81.25, "heldout_top1": 80.0}
        write_record(folder / "record.json", {"metrics": metrics})
        return
    place = {"stage": folder.name, "pid": pid, "host": os.uname().nodename, "step": 250, "steps": 400, "epoch": 3}
    (folder / NOW).write_text(json.dumps({**place, "epochs": 4, "images_per_s": 1234.5, "left_s": 83.4, **now}))


@pytest.mark.parametrize(
    "odd",
    [
        [5],
        {"epoch": 1},
        {"epoch": 1, "losses": {"task": 1.0, "frequency": 2.0}},
        {"epoch": 1, "losses": {"task": 1.0}, "heldout_top1": 50.0},
        {"epoch": None, "losses": {"task": 1.0, "frequency": 2.0}, "heldout_top1": 50.0},
        {"epoch": 1, "losses": {"task": None, "frequency": 2.0}, "heldout_top1": 50.0},
        {"epoch": 1, "losses": {"task": 1.0, "frequency": 2.0}, "heldout_top1": float("nan")},
    ],
)
def test_a_line_that_is_no_epoch_is_left_out(odd: Json, tmp_path: Path) -> None:
    put(tmp_path / "teacher", [odd, row(2, 1.0, 80.0)], None)
    lines = [" ".join(line.split()) for line in text_of(tmp_path, trainings(tmp_path)).splitlines() if line]
    assert lines[1] == "teacher done 1 epochs test top-1 81.25 %"
    put(tmp_path / "teacher", [odd], None)
    assert "teacher" in text_of(tmp_path, trainings(tmp_path))


def test_a_record_of_another_form_is_one_line(tmp_path: Path) -> None:
    put(tmp_path / "teacher", [row(1, 2.0, 50.0)], None)
    write_record(tmp_path / "teacher" / "record.json", {"metrics": 5})
    with pytest.raises(UserError, match=r"record\.json: 'metrics' is '5', not a table of scores in percent"):
        trainings(tmp_path)


@pytest.fixture(name="worker")
def _worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_it_says_where_each_training_is(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    run = tmp_path / "tiny"
    put(run / "teacher", [row(1, 2.0, 50.0), row(2, 1.0, 80.0)], None)
    put(run / "student", [row(1, 1.5, 61.25), row(2, 0.5, 60.5)], worker.pid)
    found = trainings(run)
    assert [(training.stage, training.state) for training in found] == [
        ("teacher", State.done),
        ("prompts", State.waiting),
        ("student", State.training),
        ("undistilled", State.waiting),
    ]
    lines = [" ".join(line.split()) for line in text_of(run, found).splitlines() if line]
    assert lines[1] == "teacher done 2 epochs test top-1 81.25 %"
    assert lines[2] == "task █▁ 2.000 -> 1.000"
    assert lines[4] == "held-out ▁█ 50.00 -> 80.00 %, best 80.00 % (epoch 2)"
    assert lines[5] == "prompts not begun"
    assert lines[6] == "student training epoch 3/4 step 250/400 1,234 images/s 0:01:23 left"
    assert lines[8] == "frequency █▁ 3.000 -> 1.000"
    assert lines[9] == "held-out █▁ 61.25 -> 60.50 %, best 61.25 % (epoch 1)"
    whole = text_of(run, found)
    assert text_of(run, found, len(whole.splitlines())) == whole
    short = [" ".join(line.split()) for line in text_of(run, found, 12).splitlines() if line]  # a terminal of 12 lines
    assert short[1:3] == ["teacher done 2 epochs test top-1 81.25 %", "prompts not begun"]
    assert (short[3:7], len(short)) == (lines[6:10], 8), "what trains now is shown whole"
    worker.kill()
    worker.wait()
    student = trainings(run)[2]
    assert student.state is State.stopped
    assert "the next `make distill` continues it" in text_of(run, [student])


def test_on_another_machine_it_is_believed_and_half_a_file_is_no_harm(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    put(run / "student", [], 1, host="elsewhere", step=0, epoch=1, images_per_s=None, left_s=None)
    (student,) = [found for found in trainings(run) if found.stage == "student"]
    assert student.state is State.training
    assert " ".join(text_of(run, [student]).splitlines()[-1].split()) == "student training epoch 1/4 step 0/400"
    (run / "student" / NOW).write_text("{")
    (run / "student" / EPOCHS).write_text('{"epoch": 1')
    (student,) = [found for found in trainings(run) if found.stage == "student"]
    assert (student.state, student.rows) == (State.stopped, [])
    text_of(run, [student])


def test_more_is_to_come_while_a_run_holds_the_folder(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    run = tmp_path / "tiny"
    put(run / "teacher", [row(1, 2.0, 50.0)], None)
    holder = {"pid": worker.pid, "host": os.uname().nodename, "since": "now"}
    assert not is_going_on(run, trainings(run))
    (tmp_path / "next").mkdir()
    with pytest.raises(UserError, match="no training is or was here"):
        trainings(tmp_path / "next")
    write_record(tmp_path / HOLDER, holder)
    assert is_going_on(tmp_path / "next", trainings(tmp_path / "next"))  # it plans, or reads its data
    with pytest.raises(UserError, match="no training is or was here"):
        trainings(tmp_path / "other")
    assert is_going_on(run, trainings(run))  # between the teacher and the prompts
    for stage in ("prompts", "student", "undistilled"):
        put(run / stage, [row(1, 2.0, 50.0)], None)
    assert not is_going_on(run, trainings(run))  # it exports now
    (run / "student" / "record.json").unlink()
    worker.kill()
    worker.wait()
    assert not is_going_on(run, trainings(run))


@pytest.mark.parametrize("host", [os.uname().nodename, "c0ffee"])
def test_what_a_killed_run_left_is_not_waited_for(tmp_path: Path, host: str) -> None:
    """Its pid may be another process by now, its container's name is no machine's any more; its locks are free."""
    run = tmp_path / "tiny"
    with locked(tmp_path):
        put(run / "student", [row(1, 1.5, 61.25)], os.getpid(), host=host)
        assert is_going_on(run, trainings(run))
    write_record(tmp_path / HOLDER, {"pid": os.getpid(), "host": host, "since": "then"})
    assert trainings(run)[2].state is State.stopped
    assert not is_going_on(run, trainings(run))
    with locked(run / "student"):  # a job of a cluster may outlive its run
        assert trainings(run)[2].state is State.training


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], "▁"), ([1.0, 1.0], "▁▁"), ([0.0, 7.0], "▁█"), ([float(i) for i in range(8)], "▁▂▃▄▅▆▇█")],
)
def test_a_curve_of_signs(values: list[float], expected: str) -> None:
    assert curve(values) == expected


def test_a_long_curve_is_averaged() -> None:
    assert curve([0.0] * 160 + [1.0] * 160) == "▁" * 16 + "█" * 16
    assert curve([0.0, 2.0] * 160 + [4.0] * 10).count("█") == 1  # a sign is the mean of ten: what jumps is even
    assert len(curve([float(i) for i in range(33)])) == 32


def test_a_pipe_gets_one_state_and_json_a_document(made: HandMadeRun, tmp_path: Path) -> None:
    for role in ("teacher", "student", "undistilled"):
        put(made.folder / role, [row(1, 2.0, 50.0)], None)
    done = subprocess.run([*WATCH, str(made.folder)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == text_of(made.folder, trainings(made.folder)) + "\n"
    document = json.loads(subprocess.run([*WATCH, str(made.folder), "--json"], capture_output=True, check=True).stdout)
    assert [training["state"] for training in document] == ["done"] * 4
    assert document[2]["rows"] == [row(1, 2.0, 50.0)]
    with pytest.raises(UserError, match="no training is or was here"):
        trainings(tmp_path / "nowhere")
    done = subprocess.run([*WATCH, "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1)


def test_a_terminal_follows_until_the_training_ends(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    run = tmp_path / "tiny"
    put(run / "student", [row(1, 1.5, 61.25)], worker.pid)
    before = sorted(path.name for path in run.rglob("*"))
    with Terminal([*WATCH, str(run)], cwd=ROOT) as terminal:
        terminal.wait_for("0:01:23 left")
        put(run / "student", [row(1, 1.5, 61.25), row(2, 0.75, 70.5)], worker.pid, left_s=41.0)
        terminal.wait_for("61.25 -> 70.50 %")
        worker.kill()
        worker.wait()
        assert terminal.ended() == 0
        assert "stopped" in terminal.text
    assert sorted(path.name for path in run.rglob("*")) == before  # it wrote nothing


def test_ctrl_c_ends_it_with_0_and_not_the_training(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    run = tmp_path / "tiny"
    put(run / "student", [row(1, 1.5, 61.25)], worker.pid)
    with Terminal([*WATCH, str(run)], cwd=ROOT) as terminal:
        terminal.wait_for("0:01:23 left")
        terminal.keys(CTRL_C)
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.text
    assert worker.poll() is None
