"""`afpkd deploy`: the student on devices, what is there, and back to the one before."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from afpkd.errors import UserError
from afpkd.record import Json
from pipeline.cli_options import DeviceNamesOption, JsonOption, RecipeOption, RunsOption


def deploy(
    device: DeviceNamesOption,
    recipe: RecipeOption = "default",
    precision: Annotated[str, typer.Option("--precision", help="Which file of the bundle.")] = "fp16",
    role: Annotated[str, typer.Option("--role", help="Whose bundle.")] = "student",
    runs: RunsOption = Path("runs"),
    keep: Annotated[int, typer.Option("--keep", min=2, help="How many releases stay on a device.")] = 3,
    status: Annotated[bool, typer.Option("--status", help="Say what is deployed; change nothing.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the release before.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put an exported file on devices as their current release, once it was built and checked there."""
    from deploy import deployment
    from pipeline.screen import Screen, waiting

    names = device.split()
    if not names or (status and rollback):
        raise UserError("E_USAGE", "deploy: name a device with --device, and one of --status and --rollback at most")
    try:
        if status or rollback:
            with waiting("deploy", f"asking {', '.join(names)}"):
                rows = deployment.deployed(names) if status else deployment.roll_back(names)
        else:
            bundle = _bundle(recipe, runs, role)
            with Screen() as screen:
                tell = _teller(screen.show, names)
                rows = deployment.deploy_bundle(bundle, names, precision=precision, keep=keep, progress=tell)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was switched where it was not done yet\n")
        raise SystemExit(130) from None
    _show(rows, as_json)


def _bundle(recipe: str, runs: Path, role: str) -> Path:
    from export.bundle import read_manifest
    from pipeline.lineage import is_trained_anew
    from pipeline.recorded import recorded
    from pipeline.workspace import open_run

    folder = open_run(recipe, runs).role(role)
    bundle, record = folder / "bundle", folder / "record.json"
    if not (bundle / "manifest.json").exists():
        raise UserError("E_RUN_MISSING", f"{bundle}: nothing was exported yet: run `make export` first")
    if is_trained_anew(read_manifest(bundle), recorded(record) if record.is_file() else None):
        told = "the network was trained anew and has not been exported since"
        raise UserError("E_RUN_CHANGED", f"{bundle}: {told}: run `make export` first")
    return bundle


def _teller(show: Callable[[Json], None], names: list[str]) -> Callable[[str, str, int, int], None]:
    """What a device's job says as events of a stage that is called as the device; jobs of several go side by side."""
    for device in names:
        show({"stage": device, "job": device, "busy": "connecting"})

    def tell(device: str, text: str, done: int, total: int) -> None:
        show({"stage": device, "job": device, "text": text})
        if total:
            show({"stage": device, "job": device, "done": done, "total": total, "note": text})

    return tell


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
