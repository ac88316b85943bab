"""SIGKILL at random moments of a whole run, then the same command again: is anything lost, half-written or left over?

`make bench ARGS=crash`: 30 kills of a tiny recipe, all stages from the teacher to the report; now the run itself, now
one of its stages. After each kill every artifact is hashed against its record (what has none yet is no result, and is
made anew) and nothing may live on; the run then continues in the same folder. Where it ends, its weights must be those
of a run that was never killed, to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from afpkd.errors import UserError
from afpkd.record import Json, sha256_of, write_record
from bench.command import run
from bench.rows import RESULTS, circumstances
from pipeline.lineage import UNRECORDED, lineage

RECIPE = """
extends = "default"
[data]
heldout = 3700
[teacher]
arch = "resnet8"
epochs = 3
min_top1 = 0.0
[prompts]
epochs = 2
must_choose = false
[distill]
epochs = 3
[export]
precisions = ["fp32", "int8"]
"""
STAGES = ("teacher", "prompts", "student", "undistilled")
GOALS = ("distill", "export", "profile")
_MARK = "AFPKD_CRASH_RUN"
_SECONDS_TO_END = 60.0


def main(arguments: Sequence[str] = ()) -> None:
    """Kill, continue, compare; write results/crash.json and print it."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=crash")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "crash.json")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = crashes(Path(folder), kills=chosen.kills, seed=chosen.seed)
    write_record(chosen.out, found)
    shown = ("kills", "runs_ended", "runs_bit_equal", "faults", "left_alive", "tracebacks")
    sys.stdout.writelines(f"{name:<16} {found[name]}\n" for name in shown)


def crashes(folder: Path, *, kills: int, seed: int, goals: Sequence[str] = GOALS) -> Json:
    """Do it below `folder`; give counts, and of each kill when it came, what it hit and how far the run was."""
    chance = random.Random(seed)  # noqa: S311 (moments, no secrets)
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    job = _Job(recipe, goals, mark=uuid.uuid4().hex)
    started = time.monotonic()
    _require_well_ended(job.start(folder / "whole"))
    whole_s, wanted = time.monotonic() - started, _weights(folder / "whole")
    done: list[Json] = []
    same: list[bool] = []
    while len(done) < kills:
        runs = folder / f"killed{len(same)}"
        while len(done) < kills and (killed := _killed(job, runs, chance, whole_s / 3)):
            done.append(killed)
        _require_well_ended(job.start(runs))
        same.append(_weights(runs) == wanted)
        shutil.rmtree(runs)
    return {
        "kills": len(done),
        "runs_ended": len(same),
        "runs_bit_equal": sum(same),
        **{name: sum(len(kill[name]) for kill in done) for name in ("faults", "left_alive", "tracebacks")},
        "uninterrupted_s": round(whole_s, 1),
        "each": done,
        "seed": seed,
        "goals": list(goals),
        **circumstances(),
    }


class _Job(NamedTuple):
    """The same command again and again; `mark` lies in the environment of all that it starts."""

    recipe: Path
    goals: Sequence[str]
    mark: str

    def start(self, runs: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline", "run", *self.goals, "--recipe", str(self.recipe)]
        return subprocess.Popen(
            [*command, "--runs", str(runs), "--train-device", "cpu"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", _MARK: self.mark},
        )


def _require_well_ended(process: subprocess.Popen[str]) -> None:
    errors = process.communicate()[1]
    if process.returncode:
        raise UserError("E_BENCH", f"a run that was not killed failed: {errors.strip().splitlines()[-1]}")


def _killed(job: _Job, runs: Path, chance: random.Random, most_s: float) -> Json | None:
    """Start the run and kill it, or one of its processes, within `most_s`; None where it ended before, by itself."""
    process, after_s = job.start(runs), chance.uniform(0, most_s)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
        _require_well_ended(process)
        return None
    victim = process.pid if chance.random() < 0.5 else chance.choice(alive(job.mark) or [process.pid])
    what = "the run" if victim == process.pid else _command(victim)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    errors = process.communicate()[1]
    deadline = time.monotonic() + _SECONDS_TO_END
    while alive(job.mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    run_dir = runs / job.recipe.stem
    finished = [stage for stage in STAGES if (run_dir / stage / "record.json").exists()]
    return {
        "after_s": round(after_s, 2),
        "killed": what,
        "stages_done": finished,
        "faults": [one for one in lineage(run_dir).faults if UNRECORDED not in one] if finished else [],
        "left_alive": [_command(pid) for pid in alive(job.mark)],
        "tracebacks": [line for line in errors.splitlines() if line.startswith("Traceback")],
    }


def alive(mark: str) -> list[int]:
    """Every process that carries the mark, detached ones too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{_MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return sorted(found)


def _command(pid: int) -> str:
    """The words of a process's command line that say which stage it is."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return " ".join(word for word in words[1:] if not word.startswith(("-", "/")))[:100]
    return "gone"


def _weights(runs: Path) -> dict[str, str]:
    return {stage: sha256_of(runs / "tiny" / stage / "model.safetensors") for stage in STAGES}


if __name__ == "__main__":
    run(main)
