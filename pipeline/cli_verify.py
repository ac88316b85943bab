"""`afpkd verify`: is a run what its records say?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def verify(
    run: Annotated[Path, typer.Argument(help="A run's folder, such as runs/default.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Hash every artifact of a run again, teacher to profiles: what was changed, cut short or swapped is named."""
    from pipeline.lineage import lineage

    found = lineage(run)
    if as_json:
        sys.stdout.write(json.dumps({"run": str(run), **found._asdict()}, indent=2) + "\n")
    sys.stderr.writelines(f"error: {fault}\n" for fault in found.faults)
    if found.faults:
        raise SystemExit(2)
    if not as_json:
        sys.stdout.write(f"{run}: whole: {found.num_files} files are what their records say\n")
