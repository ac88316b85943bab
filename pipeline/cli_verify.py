"""`afpkd verify` and `afpkd reproduce`: is a run what its records say, and does it come out again?"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import JsonOption


def verify(
    run: Annotated[Path, typer.Argument(help="A run's folder, such as runs/default.")],
    as_json: JsonOption = False,
) -> None:
    """Hash every artifact of a run again, teacher to profiles: what was changed, cut short or swapped is named."""
    from pipeline.lineage import lineage
    from pipeline.screen import waiting

    with waiting("verify", f"hashing {run}"):
        found = lineage(run)
    if as_json:
        sys.stdout.write(json.dumps({"run": str(run), **found._asdict()}, indent=2) + "\n")
    sys.stderr.writelines(f"error: {fault}\n" for fault in found.faults)
    if found.faults:
        raise SystemExit(2)
    if not as_json:
        sys.stdout.write(f"{run}: whole: {found.num_files} files are what their records say\n")


def reproduce(
    record: Annotated[Path, typer.Argument(help="A profile's record, or runs/RECIPE/student/record.json.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="The recipe of a network, where it is a file of yours.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure or train it again: does the number come back? Exit 0: within; 1: not; 3: cannot be told; 2: a mistake."""
    from pipeline.reproduce import exit_code
    from pipeline.reproduce import reproduce as made_again
    from pipeline.screen import waiting

    with tempfile.TemporaryDirectory(prefix="afpkd-again-") as folder, waiting("reproduce", f"{record} once more"):
        found = made_again(record, recipe, Path(folder))
    code = exit_code(found)
    if as_json:
        rows = [one._asdict() for one in found]
        sys.stdout.write(json.dumps({"record": str(record), "exit": code, "quantities": rows}, indent=2) + "\n")
    else:
        words = {True: "within", False: "NOT within", None: "cannot be told"}
        sys.stdout.writelines(
            f"{one.quantity:<15} {one.before:>14} then {one.now:>14} now  {words[one.within]} ({one.note})\n"
            for one in found
        )
    raise SystemExit(code)
