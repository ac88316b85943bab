"""SIGKILL at random moments: nothing is lost, half-written or left over, and the end is the same to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.crash import _MARK, alive, crashes


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two whole runs and more: ten minutes are too few where others share the machine
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    found = crashes(tmp_path, kills=3, seed=105, goals=("distill",))
    assert found["kills"] == len(found["each"]) == 3
    assert {kill["killed"] == "the run" for kill in found["each"]} == {True, False}  # with this seed, both kinds
    assert found["runs_bit_equal"] == found["runs_ended"] >= 1
    assert (found["faults"], found["left_alive"], found["tracebacks"]) == (0, 0, 0), found["each"]


def test_a_process_with_the_mark_is_seen_though_it_was_detached() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], start_new_session=True).wait()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={_MARK: "a mark"}, text=True
    )
    while len(alive("a mark")) < 2:
        assert process.poll() is None
    process.communicate("")
    assert alive("a mark") == []
