"""`afpkd run profile --device …` as make calls it: devices side by side, one failing, interrupted."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.loopback import AT_START, Board, free_port, python_with, wait_until
from tests import stories
from tests.tiny import tiny_recipe


@pytest.fixture(scope="module")
def folder(brief: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny recipe was distilled and exported."""
    made = tmp_path_factory.mktemp("run on devices")
    write(made, "quick")
    started = start(made, "distill", "export", "--device", "local")
    assert started.wait() == 0, (made / "stderr").read_text()
    return made


def write(folder: Path, preset: str, precisions: str = '["fp32"]') -> None:
    files = f'[export]\nprecisions = {precisions}\n[profile]\npreset = "{preset}"\n'
    (folder / "tiny.toml").write_text(tiny_recipe(more=f'method = "kd"\n{files}'))


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline", "run", *arguments, "--recipe", "tiny.toml", "--train-device", "cpu"]
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def profiles(folder: Path) -> set[str]:
    root = folder / "runs" / "tiny" / "profiles"
    return {str(path.relative_to(root)) for path in root.glob("*/[!.]*.json")}


ROLES = ("teacher", "student", "undistilled")


@pytest.mark.slow
def test_one_device_fails_the_others_are_measured(folder: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (board.folder / "devices.toml").read_text()
    away = f'[away]\nhost = "127.0.0.1:{free_port()}"\n'
    (folder / "devices.toml").write_text(text + text.replace("[board]", "[other]\nworkdir = 'other'") + away)
    monkeypatch.delenv("AFPKD_DEVICES")  # found in the working directory, though stages work in the folder of runs
    run = start(folder, "profile", "--device", "away board other")
    assert run.wait() == 2, (folder / "stderr").read_text()
    assert profiles(folder) == {f"{device}/{role}-fp32.json" for device in ("board", "other") for role in ROLES}
    errors = [line for line in (folder / "stderr").read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1  # of three roles: what several stages stumble over is said once
    assert all("device away: " in line and line.endswith("[E_UNREACHABLE]") for line in errors)
    # The report is there for the others, and names the one that failed and why.
    for kind in ("md", "html"):
        text = (folder / "runs" / "tiny" / f"report.{kind}").read_text()
        assert "failed: device away: " in text
        assert "E_UNREACHABLE" in text
    with (folder / "runs" / "tiny" / "report.csv").open() as table:
        assert sorted(row["device"] for row in csv.DictReader(table)) == 3 * ["board"] + 3 * ["other"]
    again = start(folder, "profile", "--device", "board other")
    assert again.wait() == 0, (folder / "stderr").read_text()
    assert "device away" not in (folder / "runs" / "tiny" / "report.md").read_text()


SLEEPING = """
import os, sys, time
from pathlib import Path
if "profile" in sys.orig_argv:
    here = Path({folder!r})
    (here / str(os.getpid())).touch()
    until = time.monotonic() + 240
    while len(list(here.iterdir())) < {number} and time.monotonic() < until:
        time.sleep(0.1)
    sys.exit("together" if time.monotonic() < until else "alone")
"""


@pytest.mark.slow
def test_as_many_devices_at_once_as_there_are(folder: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than this machine has cores, and than Snakemake's own pool: each waits there for all the others."""
    number = len(os.sched_getaffinity(0)) + 7
    board.stop()
    board.settings = {"MaxSessions": "100"}  # they share a connection, since they are one machine
    board.start()
    (board.folder / "met").mkdir()
    waiting = SLEEPING.format(folder=str(board.folder / "met"), number=number)
    board.describe(python=python_with(board.folder / "waiting", AT_START, waiting), runtime="onnxruntime")
    one = (board.folder / "devices.toml").read_text()
    tables = [one.replace("[board]", f"[d{n}]\nworkdir = 'd{n}'") for n in range(number)]
    (folder / "devices.toml").write_text("\n".join(tables))
    monkeypatch.delenv("AFPKD_DEVICES")
    run = start(folder, "profile", "--device", " ".join(f"d{n}" for n in range(number)))
    assert run.wait() == 2
    errors = [line for line in (folder / "stderr").read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == number  # each is said once, of three roles
    assert [line for line in errors if not line.endswith(" together [E_CRASH]")] == []


@pytest.mark.slow
def test_ctrl_c_cancels_the_job_on_the_device(folder: Path, board: Board) -> None:
    write(folder, "mlperf")  # ten minutes, of which it gets none
    run = start(folder, "profile", "--device", "board")
    wait_until(lambda: run.poll() is not None or list(board.work.glob("jobs/*/heartbeat")), "a job runs there", 300)
    assert run.poll() is None, (folder / "stderr").read_text()
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    assert run.wait() == 130
    (result,) = board.work.glob("jobs/*/result.json")
    assert json.loads(result.read_text())["error"]["code"] == "E_CANCELLED"
    assert not profiles(folder) & {f"board/{role}-fp32.json" for role in ROLES}


def words_of(command: str) -> list[str]:
    """What make would call; here for a tiny recipe."""
    words = shlex.split(command)
    if words[0] == "afpkd":
        of_a_recipe = words[1] == "report" or words[1:3] == ["devices", "adopt"]
        return [*words[1:], *(["--recipe", "tiny.toml"] if of_a_recipe else [])]
    assert words[:2] in (["make", "profile"], ["make", "deploy"]), command
    given = dict(word.split("=") for word in words[2:])
    options = ["--recipe", "tiny.toml", "--device", given.pop("DEVICE")]
    if words[1] == "profile":
        options = ["profile", *options, "--train-device", "cpu"]
    else:
        options += ["--precision", given.pop("PRECISION")]
    assert not given
    return ["run" if words[1] == "profile" else "deploy", *options]


def follow(page: str, name: str, folder: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run every command of a guide in its order, a real sshd in the place of its board; what each printed."""
    (folder / "devices.toml").write_text((board.folder / "devices.toml").read_text().replace("[board]", f"[{name}]"))
    monkeypatch.delenv("AFPKD_DEVICES")
    np.save(folder / "photo.npy", np.zeros((1, 28, 28), dtype=np.uint8))
    started = start(folder, "export", "--device", "local")
    assert started.wait() == 0, (folder / "stderr").read_text()
    seen = []
    for command in stories.commands(page):
        line, _, where = command.partition("  # ")
        if where.strip() == "on the board":
            pythons = dict.fromkeys(("python3", "/home/pi/edge/bin/python"), sys.executable)
            known = {**pythons, "bundle": f"{folder}/runs/tiny/student/bundle", "standard": "quick"}
            words = [known.get(word, word.replace("~", str(board.home))) for word in shlex.split(line)]
        else:
            words = [sys.executable, "-m", "pipeline", *words_of(line)]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        seen.append(done.stdout)
    assert json.loads(next(text for text in seen if text.startswith('{"image"')))["top"]
    assert not board.work.exists()
    assert [path.name for path in board.home.rglob("*") if path.is_file()] == []
    return seen


@pytest.mark.slow
def test_the_guide_for_a_jetson_leads_there_and_leaves_no_trace(
    folder: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "quick", '["fp16", "fp32"]')
    seen = follow("jetson.md", "orin1", folder, board, monkeypatch)
    assert len(seen) >= 12
    assert json.loads(next(text for text in seen if '"afpkd.profile-by-hand/1"' in text))["precision"] == "fp16"
    assert profiles(folder) >= {f"orin1/{role}-{precision}.json" for role in ROLES for precision in ("fp16", "fp32")}


@pytest.mark.slow
def test_the_guide_for_any_other_board_leads_there_and_leaves_no_trace(
    folder: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "quick")
    seen = follow("other-board.md", "pi5", folder, board, monkeypatch)
    assert len(seen) >= 7
    assert "can run        onnxruntime" in seen[1]
    assert profiles(folder) >= {f"pi5/{role}-fp32.json" for role in ROLES}
