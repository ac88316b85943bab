"""`afpkd explain`: what an error's code means, and what mends it."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from pipeline.cli_options import JsonOption
from pipeline.completion import code_completions


def explain(
    code: Annotated[
        str | None,
        typer.Argument(help="The code at an error's end, such as E_DATA_MISSING.", autocompletion=code_completions),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what an error's code means and what mends it; without a code list them all."""
    from pipeline.explain import entries_of, text_of

    entries = entries_of(code)
    rows = [{"code": code, **entry._asdict()} for code, entry in entries.items()]
    shown = json.dumps(rows, indent=2) if as_json else text_of(entries)
    sys.stdout.write(shown + "\n")
