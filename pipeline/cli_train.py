"""The training stages as verbs: in this process, or in several that share each batch."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from afpkd.record import Json, read_record
from pipeline.cli_options import (
    DeviceOption,
    DigestOption,
    JsonOption,
    ProcessesOption,
    RecipeOption,
    RunsOption,
    ThreadsOption,
    TrainDevice,
    require_unchanged,
)
from pipeline.progress import EVENTS_VARIABLE

if TYPE_CHECKING:
    from pipeline.workspace import Run


_STAGES = {
    "train-teacher": ("teacher", "Stage: train the teacher, or take a foreign one in."),
    "tune-prompts": ("prompts", "Stage: fine-tune the frequency prompts inside the frozen teacher (phase 1)."),
    "train-student": ("student", "Stage: distil the student (phase 2)."),
    "train-undistilled": ("undistilled", "Stage: train the student without a teacher, the control."),
}


def _function(verb: str) -> Callable[..., None]:
    stage, told = _STAGES[verb]

    def call(
        recipe: RecipeOption = "default",
        runs: RunsOption = Path("runs"),
        train_device: DeviceOption = TrainDevice.auto,
        train_processes: ProcessesOption = 1,
        threads: ThreadsOption = 0,
        digest: DigestOption = None,
        as_json: JsonOption = False,
    ) -> None:
        from pipeline.sharing import feeds_of
        from pipeline.workspace import open_run

        with _guard(stage, runs, train_processes):
            run = open_run(recipe, runs, device=train_device, threads=threads, processes=train_processes)
            made = _made(verb, stage, require_unchanged(run, stage, digest, feeds_of(stage, run.recipe)))
            if as_json:
                sys.stdout.write(json.dumps(made, indent=2) + "\n")

    call.__doc__ = told
    return call


def _guard(stage: str, runs: Path, processes: int) -> AbstractContextManager[object]:
    """What a call stands under: a run's lock is taken once, and of several processes the first one speaks, in lines."""
    from pipeline import graph
    from pipeline.locks import locked
    from pipeline.processes import is_worker, worker_call

    if is_worker():
        return worker_call(runs)
    if processes > 1 and not os.environ.get(EVENTS_VARIABLE):
        return locked(runs) if runs.is_dir() else nullcontext()
    return graph.stage_call(stage, runs)


def _made(verb: str, stage: str, run: Run) -> Json:
    """The stage's record: made here, or by processes that run the same verb."""
    from afpkd.settings import TrainSettings
    from pipeline import stages
    from pipeline.locks import stage_lock
    from pipeline.processes import in_processes, is_worker, require_processes

    require_processes(run.processes, run.recipe, run.device)
    if stage == "teacher" and not isinstance(run.recipe.teacher, TrainSettings):
        run = dataclasses.replace(run, processes=1)  # a foreign teacher is taken in, not trained
    if run.processes > 1 and not is_worker():
        arguments = [verb, "--recipe", str(run.recipe_file), "--runs", str(run.folder.parent)]
        with stage_lock(run.role(stage)):
            in_processes(stage, arguments, processes=run.processes, train_device=run.device, threads=run.threads)
        return read_record(run.role(stage) / "record.json")
    calls: dict[str, Callable[[Run], Json]] = {
        "teacher": stages.train_teacher,
        "prompts": stages.tune_prompts,
        "student": stages.train_student,
        "undistilled": stages.train_undistilled,
    }
    with nullcontext() if is_worker() else stage_lock(run.role(stage)):
        return calls[stage](run)


VERBS = {verb: _function(verb) for verb in _STAGES}
"""What the command line has."""
