"""`afpkd deploy`: the student on devices, what is there, and back to the one before."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from afpkd.record import Json, UserError

Tell = Callable[[str, str, int, int], None]


def deploy(
    device: Annotated[str, typer.Option("--device", help="Where to: names in devices.toml, apart by spaces.")],
    recipe: Annotated[str, typer.Option("--recipe", help="A shipped recipe's name, or a TOML file.")] = "default",
    precision: Annotated[str, typer.Option("--precision", help="Which file of the bundle.")] = "fp16",
    role: Annotated[str, typer.Option("--role", help="Whose bundle.")] = "student",
    runs: Annotated[Path, typer.Option("--runs", help="The folder of runs.")] = Path("runs"),
    keep: Annotated[int, typer.Option("--keep", min=2, help="How many releases stay on a device.")] = 3,
    status: Annotated[bool, typer.Option("--status", help="Say what is deployed; change nothing.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the release before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Put an exported file on devices as their current release, once it was built and checked there."""
    from deploy import deployment

    names = device.split()
    if not names or (status and rollback):
        raise UserError("deploy: name a device with --device, and one of --status and --rollback at most")
    try:
        if status:
            rows = deployment.deployed(names)
        elif rollback:
            rows = deployment.roll_back(names)
        else:
            bundle = _bundle(recipe, runs, role)
            with _progress() as tell:
                rows = deployment.deploy_bundle(bundle, names, precision=precision, keep=keep, progress=tell)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was switched where it was not done yet\n")
        raise SystemExit(130) from None
    _show(rows, as_json)


def _bundle(recipe: str, runs: Path, role: str) -> Path:
    from pipeline.workspace import open_run

    bundle = open_run(recipe, runs).role(role) / "bundle"
    if not (bundle / "manifest.json").exists():
        raise UserError(f"{bundle}: nothing was exported yet: run `make export` first")
    return bundle


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar a device on a terminal, else a line an event."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda device, text, done, total: print(f"{device}: {text}", file=sys.stderr)
        return
    columns = (TextColumn("{task.fields[device]:<12}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def tell(device: str, text: str, done: int, total: int) -> None:
            if device not in tasks:
                tasks[device] = bars.add_task(text, device=device, total=None)
            if total:
                bars.update(tasks[device], description=text, completed=done, total=total)
            else:
                bars.console.print(f"{device}: {text}", markup=False)

        yield tell


def _show(rows: list[Json], as_json: bool) -> None:
    text = json.dumps(rows, indent=2) if as_json else "\n".join(line for row in rows for line in _lines(row))
    if text:
        sys.stdout.write(text + "\n")
    errors = [row["error"] for row in rows if "error" in row]
    for error in errors:
        sys.stderr.write(f"error: {error}\n")
    if errors:
        raise SystemExit(2)


def _lines(row: Json) -> Iterator[str]:
    if "releases" in row:
        yield f"{row['device']}: {'nothing is deployed' if row['current'] is None else row['current']}"
        for release in row["releases"]:
            mark = "*" if release["current"] else " "
            yield f"  {mark} {release['id']:<40} {release['runtime']:<12} {release['deployed_at']}"
    elif "release" in row:
        release = row["release"]
        how = f"back from {row['rolled_back']}" if "rolled_back" in row else "built and checked there"
        yield f"{row['device']}: {release['id']} is current ({how})"
