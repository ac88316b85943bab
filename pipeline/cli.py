"""`afpkd`: what make calls, and each stage as a verb. With --json, stdout is one document; messages go to stderr."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afpkd.errors import UserError
from afpkd.record import Json, our_version
from pipeline import (
    cli_cost,
    cli_deploy,
    cli_devices,
    cli_doctor,
    cli_explain,
    cli_measure,
    cli_report,
    cli_sweep,
    cli_train,
    cli_verify,
    cli_watch,
)
from pipeline.cli_options import (
    ClusterOption,
    DeviceNameOption,
    DeviceNamesOption,
    DeviceOption,
    DigestOption,
    Goal,
    JsonOption,
    ProcessesOption,
    QuietOption,
    RecipeOption,
    RecipesOption,
    RunsOption,
    TrainDevice,
    require_unchanged,
    snakemake_words,
)
from pipeline.parent import WORKER_VARIABLE, die_with_parent
from pipeline.progress import EVENTS_VARIABLE, QUIET_VARIABLE

if TYPE_CHECKING:
    from pipeline.workspace import Run

app = typer.Typer(
    help="Distil a vision teacher into a small student for edge devices, and prove how good and how fast it is.",
    epilog="Exit codes: 0 done; 2 a mistake that one line explains; 130 interrupted; 1 a fault of this program. "
    "`compare`, `reproduce`: 1 worse, or not the same, 3 cannot be told. "
    "An error ends in its code: `afpkd explain CODE`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_devices.app, name="devices")
app.command()(cli_deploy.deploy)
app.command()(cli_verify.verify)
app.command()(cli_verify.reproduce)
app.command()(cli_measure.measure)
app.command(cls=cli_report.ManyValues)(cli_report.report)
app.command()(cli_report.compare)
app.command()(cli_cost.cost)
app.command()(cli_watch.watch)
app.command()(cli_doctor.doctor)
app.command()(cli_explain.explain)
app.command()(cli_sweep.sweep)
app.command("share-stage")(cli_sweep.share_stage)
for _name, _verb in cli_train.VERBS.items():
    app.command(_name)(_verb)

bundle_app = typer.Typer(help="What travels to a device.", no_args_is_help=True)
app.add_typer(bundle_app, name="bundle")


class Role(StrEnum):
    """Whose network."""

    teacher = "teacher"
    student = "student"
    undistilled = "undistilled"


def _say_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"afpkd {our_version()}\n")
        raise typer.Exit


@app.callback()
def every_verb(
    quiet: QuietOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Settle what holds for every verb, and for the processes that it starts."""
    if quiet:
        os.environ[QUIET_VARIABLE] = "1"


@app.command()
def run(
    goals: Annotated[list[Goal], typer.Argument(help="What to bring up to date.")],
    recipe: RecipesOption = ["default"],  # noqa: B006 (Typer copies it)
    device: DeviceNamesOption = "local",
    train_device: DeviceOption = TrainDevice.auto,
    train_processes: ProcessesOption = 1,
    runs: RunsOption = Path("runs"),
    cluster: ClusterOption = None,
    snakemake: Annotated[str, typer.Option("--snakemake", help="More arguments for Snakemake.")] = "",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Event files of what is trained.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring goals up to date, with all they need: what `make distill export profile report` calls."""
    from pipeline import event_files, graph, summary

    every_verb(quiet)
    extra = snakemake_words(snakemake)
    if tensorboard:
        event_files.require_tensorboard()
        os.environ[event_files.VARIABLE] = "1"
    summary.announce(goals, recipe)
    with graph.interruptible():
        folders = graph.run_goals(
            goals,
            recipes=recipe,
            runs=runs,
            devices=device.split(),
            train_device=train_device,
            train_processes=train_processes,
            cluster=cluster,
            extra=extra,
        )
    variables = summary.make_variables(
        recipe if len(folders) > 1 else recipe[:1],
        device=device,
        train_device=train_device,
        train_processes=train_processes,
        runs=runs,
        cluster=cluster,
    )
    found = [summary.facts(folder) for folder in folders]
    _show(found[0] if len(found) == 1 else found, as_json, lambda _: summary.closing(found, goals, variables))


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from pipeline.recipe_reader import load_recipe, recipe_names

    rows = [{"name": name, "description": load_recipe(name)[1].description} for name in recipe_names()]
    _show(rows, as_json, lambda rows: "\n".join(f"{row['name']:<32} {row['description']}" for row in rows))


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="A run's role folder, a weights file, or a bundle.")],
    arch: Annotated[
        str | None,
        typer.Option("--arch", help="Model of a bare weights file; of a role your own FILE.py:FUNCTION."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Data set of a bare weights file.")] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Whose normalisation a bare weights file wants.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy on the test set: {"top1": percent, "n": images}; of a detector's bundle AP, AP50, ..."""
    from pipeline.evaluation import accuracies_told, evaluate_path
    from pipeline.screen import waiting

    with waiting("evaluate", f"{path} on its test set"):
        found = evaluate_path(path, arch=arch, data=data, recipe=recipe)
    _show(found, as_json, accuracies_told)


@bundle_app.command("verify")
def bundle_verify(
    path: Annotated[Path, typer.Argument(help="A bundle: the folder that holds manifest.json.")],
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a bundle against its manifest: nothing changed, missing, added, linked or oversized."""
    from export.sealed import verify_bundle

    manifest = verify_bundle(path)
    files = [{key: entry[key] for key in ("path", "precision", "runtime", "status")} for entry in manifest["files"]]
    found = {"bundle": str(path), "role": manifest["role"], "hashes": len(manifest["hashes"]), "files": files}
    _show(found, as_json, lambda found: f"{path}: whole: {found['hashes']} files are those of the manifest")


@app.command()
def export(
    role: Annotated[Role, typer.Option("--role", help="Whose weights.")] = Role.student,
    recipe: RecipeOption = "default",
    runs: RunsOption = Path("runs"),
    onnx: Annotated[Path | None, typer.Option("--onnx", help="A foreign model: its ONNX file.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="A foreign model: its weights file ...")] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="... and FILE.py:FUNCTION, which makes its network.")
    ] = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="SPEC.toml of a foreign model.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of a foreign model's bundle.")] = None,
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage: write one role's bundle (ONNX files, golden inputs, evaluation set, manifest); or a foreign model's."""
    if any(option is not None for option in (onnx, weights, arch, spec, out)):
        from pipeline.foreign import export_foreign

        manifest = export_foreign(onnx=onnx, weights=weights, arch=arch, spec_file=spec, out=out)
        _show(manifest, as_json, lambda _: f"bundle: {out}\nnext: afpkd evaluate {out}")
        return

    def call(stages: Any, work: Run) -> Any:
        return stages.export_bundle(require_unchanged(work, "export", digest, [role]), role)

    _stage_with(f"export {role}", as_json, call, recipe, runs)


@app.command()
def profile(
    roles: Annotated[list[Role], typer.Option("--role", help="Whose bundle; several take turns.")] = [Role.student],  # noqa: B006 (Typer copies it)
    precision: Annotated[str, typer.Option("--precision", help="Which file of the bundle.")] = "fp32",
    device: DeviceNameOption = "local",
    recipe: RecipeOption = "default",
    runs: RunsOption = Path("runs"),
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage: measure latency, memory and accuracy of exported files on a device."""

    def call(stages: Any, work: Run) -> Any:
        run = require_unchanged(work, "profile", digest)
        records = stages.profile(run, [str(role) for role in roles], precision, device)
        return records[0] if len(records) == 1 else records

    _stage_with(f"profile {' '.join(roles)}", as_json, call, recipe, runs)


def main() -> None:
    """Run the program. Exit 0: done; 2: a mistake that the one line on stderr explains; 130: interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr's are: a terminal may not have our signs
    gc.set_threshold(10_000)  # of Python's 700: to import torch makes many objects and no garbage, a sixth of its time
    if os.environ.get(WORKER_VARIABLE):
        from pipeline.processes import begin_worker

        begin_worker()
    elif os.environ.get(EVENTS_VARIABLE):
        die_with_parent()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would keep a device's number in the home
    try:
        app()
    except UserError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        _fail(UserError("E_PACKAGE", f"{error}: a package is missing: `afpkd doctor` says what mends it"))
    except Exception as error:
        from pipeline.disk import explained

        told = explained(error, Path(getattr(error, "filename", None) or "."))
        if not isinstance(told, UserError):
            raise
        _fail(told)


def _stage_with(label: str, as_json: bool, call: Callable[[Any, Any], Json], recipe: str, runs: Path) -> None:
    from pipeline import graph, stages
    from pipeline.workspace import open_run

    with graph.stage_call(label, runs):
        _show(call(stages, open_run(recipe, runs)), as_json, lambda _: "")


def _show(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    shown = json.dumps(value, indent=2) if as_json else text(value)
    if shown:
        sys.stdout.write(shown + "\n")


def _fail(error: UserError) -> None:
    sys.stderr.write(f"error: {error}\n")
    raise SystemExit(2)
