"""`afpkd watch`: the trainings of a run, while they go on or afterwards."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import JsonOption

_SECONDS = 1.0


def watch(
    run: Annotated[Path, typer.Argument(help="A run's folder, such as runs/default.")],
    as_json: JsonOption = False,
) -> None:
    """Show the curves of a run's trainings: on a terminal until they end or Ctrl-C, elsewhere once. Changes nothing."""
    from pipeline.watch import text_of, trainings

    found = trainings(run)
    if as_json:
        sys.stdout.write(json.dumps([training._asdict() for training in found], indent=2) + "\n")
    elif sys.stdout.isatty():
        _follow(run)
    else:
        sys.stdout.write(text_of(run, found) + "\n")


def _follow(run: Path) -> None:
    from rich.live import Live
    from rich.text import Text

    from pipeline.watch import is_going_on, text_of, trainings

    found = trainings(run)
    try:
        with Live(auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                text = text_of(run, found, live.console.height)
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
                if not is_going_on(run, found):
                    return
                time.sleep(_SECONDS)
                found = trainings(run)
    except KeyboardInterrupt:
        return  # whoever looked has seen enough; the training goes on
