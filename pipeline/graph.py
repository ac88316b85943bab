"""Run goals through Snakemake, under our own lock, and show what the stages say.

Snakemake knows who feeds whom; its own lock goes stale after a SIGKILL and names no holder, so it runs with --nolock
under a `filelock`, which the kernel releases with its process and which names pid, host and since when.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import filelock
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from afpkd.data.dataset import data_root
from afpkd.record import Json, UserError, read_record, write_record
from deploy.devices import find_device
from deploy.inventory import VARIABLE as INVENTORY_VARIABLE
from deploy.inventory import inventory_path
from deploy.presets import find_preset
from pipeline.failures import clear_failures, failures
from pipeline.parent import PARENT_VARIABLE
from pipeline.processes import require_processes
from pipeline.progress import EVENTS_VARIABLE, StageProgress, event_line
from pipeline.recipe import ROLES, Recipe
from pipeline.recipe_reader import load_recipe, recipe_path, teacher_weights

SNAKEFILE = Path(__file__).with_name("Snakefile")
POLL_SECONDS = 0.2
CANCEL_SECONDS = 10.0


def run_goals(
    goals: Sequence[str],
    *,
    recipe: str,
    runs: Path,
    devices: Sequence[str],
    train_device: str,
    train_processes: int = 1,
    extra: Sequence[str] = (),
) -> Path:
    """Bring the goals of a recipe up to date; return the run's folder. UserError where a stage stopped."""
    name, decoded = load_recipe(recipe)
    train_device = "cpu" if train_device == "auto" and not _has_gpu() else train_device
    # What is missing is said before anything starts.
    require_processes(train_processes, decoded, train_device)
    teacher_weights(decoded, recipe_path(recipe))
    decoded.stage_digest("teacher")  # reads own images and files
    for device in devices:
        find_device(device)
    folder = runs.resolve() / name
    runs.mkdir(parents=True, exist_ok=True)
    with locked(runs):
        folder.mkdir(exist_ok=True)
        _drop_records_of_another_recipe(folder, decoded)
        if clear_failures(folder):  # a report that names them is outdated
            (folder / "report.html").unlink(missing_ok=True)
        targets = [target for goal in goals for target in targets_of(goal, name, decoded, devices)]
        config = {
            "recipe": str(recipe_path(recipe)),
            "train_device": train_device,
            "train_processes": train_processes,
            "devices": list(devices),
            "cores": len(os.sched_getaffinity(0)),
        }
        try:
            _snakemake(runs.resolve(), folder, list(dict.fromkeys(targets)), config, extra)
        except (SystemExit, UserError):
            if failures(folder):
                _report_the_rest(runs.resolve(), folder, str(config["recipe"]))
            raise
    return folder


def targets_of(goal: str, name: str, recipe: Recipe, devices: Sequence[str]) -> list[str]:
    """The files, relative to the folder of runs, that a goal wants."""
    profiles = [
        f"{name}/profiles/{device}/{role}-{precision}.json"
        for device in devices
        for role in ROLES
        for precision in recipe.export.precisions
    ]
    return {
        "distill": [f"{name}/student/record.json", f"{name}/undistilled/record.json"],
        "export": [f"{name}/{role}/bundle/manifest.json" for role in ROLES],
        "profile": [*profiles, f"{name}/report.html"],
        "report": [f"{name}/report.html"],
    }[goal]


def roles_in_turns(recipe: Recipe) -> list[tuple[str, ...]]:
    """Which roles one job measures: all of them in turns where each takes several processes, else each alone."""
    return [ROLES] if find_preset(recipe.profile.preset).repeats > 1 else [(role,) for role in ROLES]


@contextmanager
def locked(runs: Path) -> Iterator[None]:
    """Hold the folder of runs alone; UserError naming who holds it."""
    lock, holder = filelock.FileLock(runs / ".lock"), runs / ".lock.json"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{runs} is in use by {_holder(holder)}: wait for it, or use another RUNS") from None
    try:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_record(holder, {"pid": os.getpid(), "host": os.uname().nodename, "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _has_gpu() -> bool:
    """Whether the kernel shows an NVIDIA GPU (/dev/dxg: under WSL); torch is not asked, since it takes seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _drop_records_of_another_recipe(folder: Path, recipe: Recipe) -> None:
    """Remove records whose identity is not this recipe's, also where a verb made them and Snakemake knows nothing."""
    stages = {f"{role}/record.json": role for role in (*ROLES, "prompts")}
    stages |= {f"{role}/bundle/manifest.json": "export" for role in ROLES}
    stages |= {str(path.relative_to(folder)): "profile" for path in folder.glob("profiles/*/[!.]*.json")}
    for name, stage in stages.items():
        path = folder / name
        if not path.exists():
            continue
        record = read_record(path)
        if record.get("lineage", record).get("config_digest") != recipe.stage_digest(stage):
            path.unlink()


@contextmanager
def stage_call(label: str, runs: Path) -> Iterator[bool]:
    """Call one stage: under the lock, or, inside a run (True), which holds it, telling the run what went wrong."""
    inside_a_run = bool(os.environ.get(EVENTS_VARIABLE))
    try:
        with nullcontext() if inside_a_run or not runs.is_dir() else locked(runs):
            yield inside_a_run
    except Exception as error:
        if not inside_a_run:
            raise
        StageProgress(label).error(str(error) if isinstance(error, UserError) else f"{label}: {error!r}")
        if not isinstance(error, UserError):
            raise  # a fault of ours: the log keeps its traceback
        raise SystemExit(2) from None


def _holder(path: Path) -> str:
    try:
        held = read_record(path)
        return f"pid {held['pid']} on {held['host']} since {held['since']}"
    except (UserError, KeyError):
        return "another run"


def _snakemake(runs: Path, folder: Path, targets: list[str], config: Json, extra: Sequence[str]) -> None:
    events, log = folder / "events.jsonl", folder / "snakemake.log"
    events.write_text("")
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(runs)),
        # One more than this machine's for each device that works alone; what works here shares `here`.
        *("--cores", str(config["cores"] + _num_remote(config["devices"]))),
        *("--nolock", "--rerun-incomplete", "--keep-going"),
        *("--rerun-triggers", "input", "mtime", "params"),
        # Inputs count by content: a record is small, but no limit means that no touched file ever reruns a stage.
        *("--max-checksum-file-size", "10G"),
        *(
            "--resources",
            f"gpu={config['train_processes']}",
            f"here={config['cores']}",
            *(f"device_{number}=1" for number in range(len(config["devices"]))),
        ),
        *extra,
        *("--config", *(f"{key}={json.dumps(value)}" for key, value in config.items())),
        *("--", *targets),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(events))
        try:
            errors = _follow(process, events)
        except KeyboardInterrupt:
            _let_devices_cancel(process, config["devices"])
            raise
    if process.returncode:
        if errors:  # said when it happened
            raise SystemExit(2)
        raise UserError(_last_words(log))


def _num_remote(devices: Sequence[str]) -> int:
    return sum(find_device(device).machine != "local" for device in devices)


def _environment(events: Path) -> dict[str, str]:
    """What a stage of this run finds in its environment; it works in the folder of runs."""
    return {
        **os.environ,
        "AFPKD_DATA": str(data_root().resolve()),
        EVENTS_VARIABLE: str(events),
        PARENT_VARIABLE: str(os.getpid()),
        **({INVENTORY_VARIABLE: str(inventory_path().resolve())} if inventory_path().exists() else {}),
    }


def _report_the_rest(runs: Path, folder: Path, recipe: str) -> None:
    """A device that failed keeps nobody from the report of the others, which names it."""
    command = [sys.executable, "-m", "pipeline", "report", "--recipe", recipe, "--runs", str(runs)]
    done = subprocess.run(command, env=_environment(folder / "events.jsonl"), stdout=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        sys.stderr.write(f"report without what failed: {folder / 'report.html'}\n")


def _let_devices_cancel(process: subprocess.Popen[bytes], devices: Sequence[str]) -> None:
    """Leave stages time to cancel their jobs on other machines; a terminal's Ctrl-C has interrupted them as well."""
    if any(find_device(device).address for device in devices):
        with suppress(subprocess.TimeoutExpired):
            process.wait(CANCEL_SECONDS)


def _follow(process: subprocess.Popen[bytes], events: Path) -> list[str]:
    """Print lines and draw bars until the process ends; return the stages' errors."""
    console, errors = Console(stderr=True, highlight=False, soft_wrap=True), []
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars,
        events.open() as lines,
    ):
        tasks = {}
        ended = False
        while not ended:
            ended = process.poll() is not None  # one more look at the events after the end
            for line in lines.read().splitlines():
                event = json.loads(line)
                if "error" in event:
                    errors.append(event["error"])
                if "error" in event or "text" in event:
                    bars.console.print(event_line(event), markup=False)
                else:
                    stage = event["stage"]
                    if stage not in tasks:
                        tasks[stage] = bars.add_task(stage)
                    bars.update(tasks[stage], completed=event["done"], total=event["total"])
            if not ended:
                time.sleep(POLL_SECONDS)
    return errors


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"the run stopped: {lines[-1] if lines else 'no output'}: see {log}"
