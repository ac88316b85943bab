"""What watches over the tests, watched: a killed test run leaves nothing that works on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.loopback import wait_until
from tests.deploy.reaper import end_all

RUN = """
import subprocess, sys
from pathlib import Path
from tests.deploy.reaper import start_reaper
folder = Path(sys.argv[1])
reaper = start_reaper(folder)
words = ["sleep", "600"]
started = [
    subprocess.Popen(words, cwd=folder / "inside", start_new_session=True),
    subprocess.Popen(words, env={"HOME": f"{folder}/home"}),
    subprocess.Popen(["sh", "-c", "sleep 600; :", f"{folder}/sshd_config"]),
    subprocess.Popen(words, env={"HOME": f"{folder}0/home"}),
]
print(*(process.pid for process in started), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_test_run_takes_along_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "inside").mkdir()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        *ours, other = map(int, run.stdout.readline().split())
        run.send_signal(number)
    wait_until(lambda: not any(map(alive, ours)), "all that belongs to the run has ended")
    assert alive(other)  # another folder, whose name begins like ours
    os.kill(other, signal.SIGKILL)


def test_what_is_not_ours_is_left(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], cwd="/") as other:
        end_all(tmp_path)
        assert other.poll() is None
        other.kill()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
