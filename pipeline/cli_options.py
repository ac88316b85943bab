"""Options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class TrainDevice(StrEnum):
    """Where networks are trained."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


RecipeOption = Annotated[str, typer.Option("--recipe", help="A shipped recipe's name, or a path to a TOML file.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="The folder of runs.")]
DeviceOption = Annotated[TrainDevice, typer.Option("--train-device", help="Where networks are trained.")]
ProcessesOption = Annotated[
    int,
    typer.Option(
        "--train-processes", help="Processes that share each batch, a GPU each; the result's identity is the same."
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Threads of torch, of all processes; 0 = its default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
