"""Options that several verbs have."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afpkd.errors import UserError
from pipeline.completion import device_completions, recipe_completions

if TYPE_CHECKING:
    from pipeline.workspace import Run


class TrainDevice(StrEnum):
    """Where networks are trained."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Goal(StrEnum):
    """What make calls a target."""

    distill = "distill"
    export = "export"
    profile = "profile"
    report = "report"


RecipesOption = Annotated[
    list[str],
    typer.Option(
        "--recipe", help="A recipe's name, or a path to a TOML file; again for more.", autocompletion=recipe_completions
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe", help="A shipped recipe's name, or a path to a TOML file.", autocompletion=recipe_completions
    ),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="The folder of runs.")]
DeviceNameOption = Annotated[str, typer.Option("--device", help="Where to measure.", autocompletion=device_completions)]
DeviceNamesOption = Annotated[
    str, typer.Option("--device", help="Which devices, apart by spaces.", autocompletion=device_completions)
]
NamesArgument = Annotated[list[str], typer.Argument(help="Devices, by name.", autocompletion=device_completions)]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DeviceOption = Annotated[TrainDevice, typer.Option("--train-device", help="Where networks are trained.")]
ProcessesOption = Annotated[
    int,
    typer.Option(
        "--train-processes", help="Processes that share each batch, a GPU each; the result's identity is the same."
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Threads of torch, of all processes; 0 = its default.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress: errors and results alone.")]
ClusterOption = Annotated[
    str | None, typer.Option("--cluster", help="slurm, kubernetes, or a folder with Snakemake's config.yaml.")
]
DigestOption = Annotated[str | None, typer.Option("--digest", hidden=True)]
"""What a run expects of the stages that it starts: they read the recipe themselves."""


def snakemake_words(text: str) -> list[str]:
    """What `--snakemake` says, as arguments; UserError where a quote is open."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError("E_USAGE", f"--snakemake {text}: {str(error).lower()}: close it") from None


def require_unchanged(run: Run, stage: str, digest: str | None, feeds: Sequence[str] = ()) -> Run:
    """The run; UserError where its recipe is no longer that of the graph which started this stage.

    feeds: whose weights the stage reads. Where a user calls it, no graph has made those anew that the recipe of now
    would make otherwise: UserError, too.
    """
    from pipeline.recorded import recorded

    if digest is not None:
        if run.recipe.stage_digest(stage) != digest:
            told = f"{run.recipe_file}: changed while the run went on"
            raise UserError("E_RUN_CHANGED", f"{told}: give the same command again")
        return run
    for path in [run.role(feed) / "record.json" for feed in feeds]:
        if path.is_file() and recorded(path).get("config_digest") != run.recipe.stage_digest(path.parent.name):
            told = f"{path}: made by other settings than {run.recipe_file.name} has now"
            raise UserError("E_RUN_CHANGED", f"{told}: run its stage again, or `make distill`, which runs what it must")
    return run
