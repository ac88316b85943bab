"""`afpkd report`: one recipe's report, or one that compares several; `afpkd compare`: did anything get worse?"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from afpkd.errors import UserError
from afpkd.record import Json
from pipeline.cli_options import JsonOption, RecipeOption, RunsOption
from pipeline.completion import device_completions, recipe_completions

if TYPE_CHECKING:
    from pipeline.report.regression import Change

_MANY = ("--recipes", "--devices")
ASKED = "asked"
"""Below the whole report: the folder of one for a budget or for some devices."""


class ManyValues(TyperCommand):
    """Lets `--recipes a b c` take every word up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write the option again before each further value, as click wants it."""
        spread: list[str] = []
        option = None
        for arg in args:
            if arg.startswith("-"):
                option = arg if arg in _MANY else None
                spread += [] if option else [arg]
            else:
                spread += [option, arg] if option else [arg]
        return super().parse_args(ctx, spread)


def report(
    context: typer.Context,
    recipe: RecipeOption = "default",
    recipes: Annotated[
        list[str] | None,
        typer.Option("--recipes", help="Several, to compare: a b c.", autocompletion=recipe_completions),
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option("--devices", help="Only these devices: x y.", autocompletion=device_completions),
    ] = None,
    runs: RunsOption = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write; else beside the records, in asked/ with a budget or devices."),
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option("--max-latency-ms", help="p90 a file may need.")] = None,
    min_accuracy: Annotated[float | None, typer.Option("--min-accuracy", help="Top-1 in percent it must have.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the trade-off report of a recipe, or of several side by side: html, md, csv, json, png, svg."""
    from pipeline import graph, stages
    from pipeline.plan import COMPARISON
    from pipeline.workspace import open_run

    given = context.get_parameter_source("recipe")
    if recipes and given is not None and given.name == "COMMANDLINE":
        raise UserError("E_USAGE", "--recipe and --recipes: give one of them")
    if not (max_latency_ms is None or 0 < max_latency_ms < math.inf):
        raise UserError("E_USAGE", f"--max-latency-ms: more than 0, got {max_latency_ms:g}")
    if not (min_accuracy is None or 0 <= min_accuracy <= 100):
        raise UserError("E_USAGE", f"--min-accuracy: in percent, 0 to 100, got {min_accuracy:g}")
    with graph.stage_call("report", runs) as inside_a_run:
        found = [open_run(name, runs) for name in dict.fromkeys(recipes or [recipe])]
        budget = {"max_latency_ms": max_latency_ms, "min_accuracy": min_accuracy}
        where = found[0].folder if len(found) == 1 else runs / COMPARISON
        if devices or any(asked is not None for asked in budget.values()):
            where /= ASKED  # the whole report stays as it is
        where = out or where
        paths = stages.report(found, where, devices=devices or (), **budget)
    if as_json:
        _print(json.dumps(paths, indent=2))
    elif not inside_a_run:
        _print(_closing(json.loads(Path(paths["json"]).read_text(encoding="utf-8")), paths["html"]))


def _closing(found: Json, page: str) -> str:
    lines = []
    for advice in found["recommended"]:
        file = advice["file"]
        name = f"{file['recipe']}: {file['role']} {file['precision']} on {file['device']}" if file else "none"
        lines += [f"recommended: {name}", *(f"  {words}" for words in advice["why"])]
    return "\n".join([*lines, f"report: {page}"])


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def compare(
    before: Annotated[Path, typer.Argument(help="A run's folder (runs/RECIPE), or a profile record.")],
    after: Annotated[Path, typer.Argument(help="The same, later.")],
    threshold: Annotated[float, typer.Option("--threshold", help="Percent that p50, p90, size may grow.")] = 5.0,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Points of top-1 that may be lost.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Did anything get worse? Exit 0: no; 1: yes, past a threshold; 3: not all could be told; 2: a mistake."""
    from pipeline.report.regression import Outcome, compare_runs

    for path in (before, after):
        if not path.exists():
            raise UserError("E_RUN_MISSING", f"{path}: no such run or record: name one, such as runs/default")
    if not (threshold >= 0 and max_drop >= 0):  # NaN is neither
        raise UserError("E_USAGE", "--threshold and --max-drop: 0 or more")
    changes = compare_runs(before, after, threshold=threshold, max_drop=max_drop)
    outcomes = [change.outcome for change in changes]
    counts = {str(outcome): outcomes.count(outcome) for outcome in Outcome}
    code = 1 if counts["worse"] else 3 if counts["undecided"] else 0
    if as_json:
        rows = [{**row._asdict(), "change": row.change._asdict() if row.change else None} for row in changes]
        _print(json.dumps({"exit": code, "counts": counts, "changes": rows}, indent=2))
    else:
        _print("\n".join(_change_line(change) for change in changes))
        _print(", ".join(f"{number} {outcome}" for outcome, number in counts.items()))
    raise SystemExit(code)


def _change_line(change: Change) -> str:
    from pipeline.report.wording import NONE

    unit = "points" if change.quantity.endswith("(%)") else "%"
    moved = NONE
    if change.change is not None:
        value, low, high = change.change
        moved = f"{value:+.2f} {unit}" + (f" ({low:+.2f} to {high:+.2f})" if low is not None else "")
    before, after = (NONE if value is None else f"{value:,.4g}" for value in (change.before, change.after))
    note = f"  {change.note}" if change.note else ""
    return f"{change.name:<32} {change.quantity:<13} {before:>10} {after:>10}  {moved:<34} {change.outcome}{note}"
