"""`afpkd devices …`: which devices there are, what they are, and what we left on them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afpkd.errors import UserError
from afpkd.record import Json, atomic_path
from pipeline.cli_options import JsonOption, NamesArgument, RecipeOption, RunsOption
from pipeline.completion import device_completions

if TYPE_CHECKING:
    from deploy.devices import Device

app = typer.Typer(
    help="List, probe and clean the devices of devices.toml.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("list")
def list_devices(as_json: JsonOption = False) -> None:
    """List the built-in devices and those of devices.toml (in the working directory, or where AFPKD_DEVICES says)."""
    from deploy.devices import devices

    rows = [
        {
            "device": device.name,
            "reached": device.address.shown if device.address else "this machine",
            "runtime": device.runtime,
            "clocks": device.clocks,
            "tags": list(device.tags),
        }
        for device in devices().values()
    ]
    _show(rows, as_json, lambda row: f"{row['device']:<16} {row['reached']:<32} {row['runtime']:<12} {_tags(row)}")


@app.command()
def probe(names: NamesArgument, as_json: JsonOption = False) -> None:
    """Say what each device is, how it is doing, and what it can run."""
    from pipeline.probe_text import probe_text

    _show_and_exit(_ask(names, "probe"), as_json, probe_text)


@app.command()
def trust(
    name: Annotated[str, typer.Argument(help="A device, by name.", autocompletion=device_completions)],
    fingerprint: Annotated[str | None, typer.Option("--fingerprint", help="Accept this one without asking.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a device's host key and, when you say yes, accept it from now on."""
    from deploy.devices import find_device
    from deploy.host_keys import add_host_key, fetch_host_key
    from pipeline.screen import waiting

    with waiting("trust", f"asking {name}"):
        key = fetch_host_key(find_device(name))
    if not key.known:
        _require_accepted(name, key.kind, key.fingerprint, fingerprint)
        add_host_key(key)
    row = {"device": name, "fingerprint": key.fingerprint, "known": key.known, "known_hosts": str(key.known_hosts)}
    _show([row], as_json, lambda row: f"{name}: {'known already' if key.known else 'trusted'}: {key.fingerprint}")


@app.command()
def gc(
    names: NamesArgument,
    everything: Annotated[bool, typer.Option("--all", help="Remove every trace of this program there.")] = False,
    days: Annotated[float, typer.Option("--days", help="Ended jobs older than this go.")] = 7.0,
    as_json: JsonOption = False,
) -> None:
    """Free disk on the devices: ended jobs, and files beyond the device's budget_mb that nothing uses."""
    rows = _ask(
        names,
        "gc",
        lambda device: {"all": everything, "older_than_s": days * 86400, "budget_bytes": device.budget_bytes},
    )
    _show_and_exit(
        rows,
        as_json,
        lambda row: f"{row['device']}: {row['freed_bytes'] / 1e6:.1f} MB freed, {row['kept_bytes'] / 1e6:.1f} MB kept",
    )


@app.command()
def restore(names: NamesArgument, as_json: JsonOption = False) -> None:
    """Put back clocks and power mode that were left changed."""
    _show_and_exit(
        _ask(names, "restore"),
        as_json,
        lambda row: f"{row['device']}: {'put back' if row['restored'] else 'nothing to put back'}",
    )


@app.command()
def agent(
    file: Annotated[Path, typer.Argument(help="Where to write it, such as agent.pyz.")], as_json: JsonOption = False
) -> None:
    """Write the agent as a file, to carry to a board that no host reaches: `python3 agent.pyz profile BUNDLE` there."""
    from deploy.pack import agent_archive, agent_sha256

    with atomic_path(file) as temporary:
        temporary.write_bytes(agent_archive())
    row = {"file": str(file), "sha256": agent_sha256()}
    _show(
        [row],
        as_json,
        lambda row: f"{file}: carry it and a bundle to the board, then: python3 {file.name} profile BUNDLE",
    )


@app.command()
def adopt(
    device: Annotated[str, typer.Argument(help="What to call the board that made it.")],
    record: Annotated[Path, typer.Argument(help="Its record; the samples (.npz) lie beside it.")],
    recipe: RecipeOption = "default",
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Judge a record that a board made by hand (`agent.pyz profile`), and put it beside a run's other profiles."""
    from deploy.adopted import adopt_record
    from pipeline.report.wording import judged
    from pipeline.workspace import open_run

    run = open_run(recipe, runs)
    digest = run.recipe.stage_digest("profile")
    row = adopt_record(record, run.folder, device=device, recipe=run.name, config_digest=digest)
    _show([row], as_json, lambda row: f"{row['role']} {row['precision']} on {device}: {judged(row)}")


def _ask(names: list[str], verb: str, request: Callable[[Device], Json] = lambda device: {}) -> list[Json]:
    """Ask every device's agent one verb."""
    from deploy.fleet import call_each
    from pipeline.screen import waiting

    with waiting(verb, f"asking {', '.join(names)}"):
        return call_each(names, verb, request)


def _require_accepted(name: str, kind: str, shown: str, expected: str | None) -> None:
    if expected is not None:
        if expected != shown:
            raise UserError(
                "E_HOSTKEY", f"device {name}: its {kind} key is {shown}, not {expected}: nothing was accepted"
            )
        return
    if not sys.stdin.isatty():
        raise UserError(
            "E_HOSTKEY", f"device {name}: its {kind} key is {shown}: compare, then add `--fingerprint {shown}`"
        )
    sys.stderr.write(f"{name} shows the {kind} key\n  {shown}\n")
    sys.stderr.write("compare it with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on the device itself\n")
    if not typer.confirm("accept it?", err=True):
        raise UserError("E_HOSTKEY", f"device {name}: not accepted")


def _show(rows: Sequence[Json], as_json: bool, text: Callable[[Json], str]) -> None:
    shown = json.dumps(rows, indent=2) if as_json else "\n".join(text(row) for row in rows if "error" not in row)
    if shown:
        sys.stdout.write(shown + "\n")


def _show_and_exit(rows: Sequence[Json], as_json: bool, text: Callable[[Json], str]) -> None:
    """Show what came, then each error on a line of its own; exit code 2 where there is one."""
    _show(rows, as_json, text)
    errors = [row["error"] for row in rows if "error" in row]
    for error in errors:
        sys.stderr.write(f"error: {error}\n")
    if errors:
        raise SystemExit(2)


def _tags(row: Json) -> str:
    return " ".join(row["tags"])
