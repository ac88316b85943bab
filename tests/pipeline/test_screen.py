"""What a person sees of work that takes time: bars on a terminal, lines elsewhere, errors alone with --quiet."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.graph import _num_stages
from pipeline.progress import EVENTS_VARIABLE, QUIET_VARIABLE, StageProgress, event_line, heard_by
from tests.pipeline.terminal import Terminal
from tests.tiny import FEW, tiny_recipe

# A stage that waits for a key after each thing it says.
STAGE = """
import sys
from pipeline.progress import StageProgress
from pipeline.screen import shown
row = {"epoch": 1, "losses": {"task": 1.25, "frequency": 0.5}, "heldout_top1": 61.25, "images_per_s": 990.4}
progress = StageProgress("student")
def key():
    sys.stdin.readline()
with shown():
    progress.busy("reading the data")
    key()
    progress.step(50, 100, row, note="epoch 2/2  task 1.250")
    key()
    progress.error("no more")
key()
"""
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-9]|9[0-7])(?:;[0-9;]*)?m")
LINE = "student      epoch   1  task 1.250  frequency 0.500  held-out 61.25 %  990 images/s"


def test_a_terminal_has_bars_with_stage_epoch_losses_share_and_time() -> None:
    with Terminal([sys.executable, "-c", STAGE]) as terminal:
        terminal.wait_for("reading the data")
        terminal.keys("\n")
        text = terminal.wait_for("50%")
        assert "━" in text
        assert LINE in text
        terminal.wait_for("epoch 2/2  task 1.250")
        terminal.keys("\n")
        terminal.wait_for("error: no more")
        terminal.keys("\n")
        assert terminal.ended() == 0
        assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # the cursor is there again
        assert COLOUR.search(terminal.text)


def test_no_color_is_honoured() -> None:
    with Terminal([sys.executable, "-c", STAGE], NO_COLOR="1") as terminal:
        terminal.wait_for("reading the data")
        terminal.keys("\n\n\n")
        assert terminal.ended() == 0
        assert "━" in terminal.text
        assert not COLOUR.search(terminal.text)


@pytest.mark.parametrize(
    ("environment", "said"), [({}, [LINE, "error: no more"]), ({QUIET_VARIABLE: "1"}, ["error: no more"])]
)
def test_elsewhere_it_is_plain_lines_or_errors_alone(
    environment: dict[str, str], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", STAGE], input="\n\n\n", capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.splitlines() == said


def test_quiet_on_a_terminal_draws_nothing() -> None:
    with Terminal([sys.executable, "-c", STAGE], AFPKD_QUIET="1") as terminal:
        terminal.keys("\n\n\n")
        assert terminal.ended() == 0
        assert "error: no more" in terminal.text
        assert "━" not in terminal.text
        assert "epoch" not in terminal.text


def test_a_length_that_changes_starts_a_new_bar_and_an_end_drops_it() -> None:
    code = """
import os
from pipeline.screen import Screen
screen = Screen()
tasks = lambda: [(t.description, t.completed, t.total, t.fields["note"]) for t in screen._bars.tasks]
say = lambda **told: screen.show({"stage": "profile", "job": "7", **told})
say(busy="starting")
assert tasks() == [("profile", 0, None, "starting")], tasks()
say(done=40, total=60, note="measuring")
assert tasks() == [("profile", 40, 60, "measuring")], tasks()
assert not screen._bars.tasks[0]._progress  # 40 were done before anybody looked: they tell no speed
screen.show({"stage": "other", "job": "8", "done": 1, "total": 2, "note": ""})
assert len(tasks()) == 2
say(ended=True)
assert [task[0] for task in tasks()] == ["other"]
say(ended=True)  # twice is no harm
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_events_reach_the_listener_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, object]] = []
    progress = StageProgress("measure")
    with heard_by(heard.append):
        progress.job("loading", 0, 3)
        progress.job("waiting: busy", 0, 0)
        monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events"))
        StageProgress("measure").busy("for the run, which shows it")
    progress.busy("unheard")
    assert [{key: event[key] for key in event if key not in ("stage", "job")} for event in heard] == [
        {"done": 0, "total": 3, "note": "loading"},
        {"text": "waiting: busy"},
    ]
    assert event_line(heard[1]) == "measure      waiting: busy"


def test_stages_are_counted_in_snakemakes_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Building DAG of jobs...\n")
    assert _num_stages(log) == (0, 0)
    log.write_text(
        "Job stats:\njob    count\n----\ntotal             17\n\n1 of 17 steps (6%) done\n"
        "x: 9 of 17 steps\n2 of 17 steps (12%) done\n"
    )
    assert _num_stages(log) == (2, 17)


@pytest.mark.slow
def test_a_whole_run_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_recipe(heldout=FEW, epochs=2))
    command = [sys.executable, "-m", "pipeline", "run", "distill", "--recipe", "tiny.toml", "--train-device", "cpu"]
    command.append("--tensorboard")
    root = str(Path(__file__).parent.parent.parent)
    with Terminal(command, cwd=tmp_path, PYTHONPATH=root) as terminal:
        assert terminal.ended() == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text).replace("\r", "\n")
    assert "planning" in shown
    assert "of 4 stages" in shown
    for stage in ("teacher", "prompts", "student", "undistilled"):
        assert re.search(rf"\n{stage} +[━╸╺]+ +\d+% epoch 1/\d", shown), stage
        assert re.search(rf"\n{stage} +epoch +1 ", shown), stage
        assert len(list((tmp_path / "runs" / "tiny" / "tensorboard" / stage).iterdir())) == 1
    assert re.search(r"student .* frequency \d\.\d{3} .*held-out \d+\.\d\d %", shown)
    last = r"50% epoch 2/2  \d+ images/s  held-out \d+\.\d\d %  task \d\.\d{3} +\d:\d\d:\d\d left"
    assert re.search(rf"\nundistilled +[━╸╺]+ +{last}", shown)
    assert re.search(r"student +resnet8 .* [+-]\d+\.\d\d points", shown.rsplit("against undistilled", 1)[1])
    assert not list(tmp_path.rglob("progress.json*"))
