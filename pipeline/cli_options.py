"""Options that several verbs have."""

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


class Goal(StrEnum):
    """What make calls a target."""

    distill = "distill"
    export = "export"
    profile = "profile"
    report = "report"


RunsOption = Annotated[Path, typer.Option("--runs", help="The folder of runs.")]
DeviceOption = Annotated[TrainDevice, typer.Option("--train-device", help="Where networks are trained.")]
ClusterOption = Annotated[
    str | None, typer.Option("--cluster", help="slurm, kubernetes, or a folder with Snakemake's config.yaml.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
