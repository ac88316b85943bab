"""`afpkd sweep`: one recipe with several values and seeds; `afpkd share-stage`: what its points have in common."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afpkd.errors import UserError
from afpkd.names import unknown
from afpkd.record import Json, sha256_of, write_record
from pipeline.cli_options import (
    ClusterOption,
    DeviceNamesOption,
    DeviceOption,
    DigestOption,
    Goal,
    JsonOption,
    ProcessesOption,
    RecipeOption,
    RunsOption,
    TrainDevice,
    require_unchanged,
    snakemake_words,
)
from pipeline.lineage import STAGES

if TYPE_CHECKING:
    from pipeline.sweep import Point


def sweep(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a path to a TOML file.")],
    settings: Annotated[list[str], typer.Option("--set", help="KEY=VALUE,VALUE: every combination is a point.")] = [],  # noqa: B006 (Typer copies it)
    seeds: Annotated[int, typer.Option("--seeds", help="Each point with so many seeds, from the recipe's on.")] = 1,
    goals: Annotated[list[Goal], typer.Option("--goal", help="How far to go.")] = [Goal.distill],  # noqa: B006 (Typer copies it)
    device: DeviceNamesOption = "local",
    train_device: DeviceOption = TrainDevice.auto,
    train_processes: ProcessesOption = 1,
    runs: RunsOption = Path("runs"),
    cluster: ClusterOption = None,
    snakemake: Annotated[str, typer.Option("--snakemake", help="More arguments for Snakemake.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points, and start nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train every combination of values and seeds, each a run of its own, and compare them in one report."""
    from pipeline import graph, summary
    from pipeline.plan import COMPARISON
    from pipeline.sweep import label, points_of, rows_of, table_of, write_points

    extra = snakemake_words(snakemake)
    points = points_of(recipe, settings, seeds)
    graph.require_known(device.split(), cluster)
    sys.stderr.write(f"{recipe}: {len(points)} points\n")
    if dry_run:
        listed = [{"name": point.name, "settings": point.settings, "seed": point.seed} for point in points]
        _print(listed if as_json else [f"{point.name}  {label(point.settings)} seed={point.seed}" for point in points])
        return
    with graph.interruptible():
        folders = graph.run_goals(
            goals,
            recipes=write_points(points, runs),
            runs=runs,
            devices=device.split(),
            train_device=train_device,
            train_processes=train_processes,
            cluster=cluster,
            extra=extra,
        )
    found = [summary.facts(folder) for folder in folders]
    rows = rows_of(points, found)
    report = summary.report_of(found, goals)
    made = {"recipe": recipe, "rows": rows, "points": _told(points, found), "report": str(report) if report else None}
    write_record((folders[0] if len(folders) == 1 else runs / COMPARISON) / "sweep.json", made)
    variables = summary.make_variables(
        [str(points[0].file(runs))],
        device=device,
        train_device=train_device,
        train_processes=train_processes,
        runs=runs,
        cluster=cluster,
    )
    ends = [f"report: {summary.shown(report)}"] if report else []
    ends += [f"one point again: {summary.make_command(goals[-1], variables)}"]
    _print(made if as_json else [*table_of(rows), "", *ends])


def share_stage(
    stage: Annotated[str, typer.Argument(help="teacher, prompts, student or undistilled.")],
    maker: Annotated[str, typer.Option("--from", help="The run, in the same folder, that has made it.")],
    recipe: RecipeOption = "default",
    runs: RunsOption = Path("runs"),
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage: take a finished stage of another run where this recipe would make the same of the same inputs."""
    from pipeline import graph
    from pipeline.locks import stage_lock
    from pipeline.progress import StageProgress
    from pipeline.recipe_reader import teacher_weights
    from pipeline.sharing import share_stage
    from pipeline.workspace import open_run

    if stage not in STAGES:
        raise UserError("E_UNKNOWN_NAME", unknown("stage", stage, STAGES))
    with graph.stage_call(stage, runs):
        work = require_unchanged(open_run(recipe, runs), stage, digest)
        with stage_lock(work.role(stage)):
            weights = teacher_weights(work.recipe, work.recipe_file) if stage == "teacher" else None
            foreign = sha256_of(weights) if weights else None
            record = share_stage(stage, work.recipe, work.folder, runs.resolve() / maker, foreign)
        StageProgress(stage).say(f"the same as that of {maker}: copied")
    if as_json:
        _print(record)


def _told(points: Sequence[Point], found: Sequence[Json]) -> list[Json]:
    return [
        {"name": point.name, "settings": point.settings, "seed": point.seed, **facts}
        for point, facts in zip(points, found, strict=True)
    ]


def _print(value: list[str] | list[Json] | Json) -> None:
    lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
    sys.stdout.write(("\n".join(map(str, value)) if lines else json.dumps(value, indent=2)) + "\n")
