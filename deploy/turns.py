"""Files measured in turns, each time in a fresh process on the device: A, B, A, B …"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from deploy.agent.measuring import STEPS
from deploy.devices import Device, open_target
from deploy.jobs import SENDING, Progress, Work, run_job
from deploy.lock import only_measurement
from deploy.presets import Preset
from deploy.runs import Run
from deploy.target import Target


class Job(Protocol):
    """What is measured, where, and by which rules."""

    @property
    def device(self) -> Device:
        """Where."""

    @property
    def preset(self) -> Preset:
        """How long, and how often."""

    def modes(self) -> Sequence[str]:
        """How the runtime is run, the mode to quote first."""

    def work(self, mode: str, preset: Preset, turn: int, samples: Path) -> Work:
        """The measurement of one turn (from 1) in one mode, whose arrays go to `samples`."""


def measured_in_turns(jobs: Sequence[Job], progress: Progress) -> list[dict[str, list[Run]]]:
    """Measure each file, mode by mode, in turns; give each file's runs by mode, the mode to quote first.

    That is the runtime's default where it passes the golden check, else the mode that does.
    """
    device = jobs[0].device
    measured: list[dict[str, list[Run]]] = [{} for _ in jobs]
    planned = [
        (turn, number, mode)
        for turn, number in _turns(len(jobs), jobs[0].preset.repeats)
        for mode in jobs[number].modes()
    ]
    alone = only_measurement(device.machine, progress)
    with alone, open_target(device) as target, TemporaryDirectory() as folder:
        for done, (turn, number, mode) in enumerate(planned):
            job, runs = jobs[number], measured[number]
            preset, tell = _preset(job, runs, mode), _among(progress, done, len(planned))
            run = _run(target, job, mode, preset, turn, Path(folder) / "samples.npz", tell)
            runs.setdefault(mode, []).append(run)
    return [dict(sorted(runs.items(), key=lambda found: not passed(found[1]))) for runs in measured]


def _turns(num_jobs: int, repeats: int) -> Iterator[tuple[int, int]]:
    """Every file in every turn (from 1), each turn in another order; the first as they came."""
    order = list(range(num_jobs))
    for turn in range(1, repeats + 1):
        yield from ((turn, number) for number in order)
        random.Random(turn).shuffle(order)  # noqa: S311 (no secret)


def _among(progress: Progress, finished: int, num: int) -> Progress:
    """Tell one run's steps as steps of all `num`; what it sends before them is none of its steps."""

    def tell(text: str, done: int, total: int) -> None:
        if total:
            own = 0 if text.startswith(SENDING) else done
            progress(f"{finished + 1} of {num}: {text}" if num > 1 else text, finished * STEPS + own, num * STEPS)
        else:
            progress(text, 0, 0)

    return tell


def _preset(job: Job, runs: dict[str, list[Run]], mode: str) -> Preset:
    """The rules of a mode; the second of two that both compute right is a comparison: a fifth of the time does."""
    if mode in runs:
        return runs[mode][0].preset
    quotable = any(passed(found) for found in runs.values())
    return replace(job.preset, min_seconds=job.preset.min_seconds / 5) if quotable else job.preset


def _run(target: Target, job: Job, mode: str, preset: Preset, turn: int, path: Path, progress: Progress) -> Run:
    answer = run_job(target, job.work(mode, preset, turn, path), progress)
    with np.load(path) as arrays:
        return Run(preset, job.device.clocks, answer, dict(arrays))


def passed(runs: Sequence[Run]) -> bool:
    """Whether the file computed what it should in every one of the processes."""
    return all(run.passed for run in runs)
