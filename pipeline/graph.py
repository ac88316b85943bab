"""Run goals through Snakemake, under our own lock, and show what the stages say.

Snakemake knows who feeds whom; its own lock goes stale after a SIGKILL and names no holder, so it runs with --nolock.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

from afpkd.data.dataset import data_root
from afpkd.errors import UserError
from afpkd.names import unknown
from afpkd.record import Json, write_record
from deploy.devices import find_device
from deploy.inventory import VARIABLE as INVENTORY_VARIABLE
from deploy.inventory import inventory_path
from pipeline.disk import explained, full, is_full, nearly_full
from pipeline.failures import clear_failures, failures
from pipeline.gpu_nodes import gpu_nodes
from pipeline.locks import locked
from pipeline.parent import PARENT_VARIABLE
from pipeline.plan import COMPARISON, Named, claim_folder, other_comparison, outdated_records, plan_of, read_recipes
from pipeline.processes import require_processes
from pipeline.progress import EVENTS_VARIABLE, StageProgress, new_events
from pipeline.recipe import ROLES
from pipeline.screen import WHOLE, shown

SNAKEFILE = Path(__file__).with_name("Snakefile")
PROFILES = Path(__file__).with_name("profiles")
POLL_SECONDS = 0.2
CANCEL_SECONDS = 10.0
_DRY = re.compile(r"--dry-?run|-[a-zA-Z]*n[a-zA-Z]*")  # of Snakemake's options


def run_goals(
    goals: Sequence[str],
    *,
    recipes: Sequence[str],
    runs: Path,
    devices: Sequence[str],
    train_device: str,
    train_processes: int = 1,
    cluster: str | None = None,
    extra: Sequence[str] = (),
) -> list[Path]:
    """Bring the goals of all recipes up to date in one graph; return the runs' folders, one a recipe.

    Several recipes are compared in one report. cluster: `slurm`, `kubernetes` or a folder with Snakemake's config.yaml.
    UserError where a stage stopped.
    """
    devices = list(dict.fromkeys(devices))
    # What is wrong or missing is said before anything starts.
    profile = require_known(devices, cluster)
    if "profile" in goals and "local-gpu" in devices and not cluster and not gpu_nodes():
        raise UserError(
            "E_NO_DRIVER", "device local-gpu: no NVIDIA GPU in /dev: install its driver, or name another device"
        )
    found = read_recipes(recipes)
    if not cluster and train_device == "auto" and not gpu_nodes():
        train_device = "cpu"
    for one in found:
        require_processes(train_processes, one.recipe, "cpu" if cluster else train_device)
        one.recipe.stage_digest("teacher")  # reads own images and files
    folders = [runs.resolve() / one.name for one in found]
    runs.mkdir(parents=True, exist_ok=True)
    with locked(runs):
        if not any(map(_DRY.fullmatch, extra)):  # which only tells: what it would make again is still there
            _make_way(runs, found, devices if {"profile", "report"} & {*goals} else ())
        plan = plan_of(found, runs, goals, devices)
        plan |= {
            "train_device": train_device,
            "train_processes": train_processes,
            "cores": len(os.sched_getaffinity(0)),
            "cluster": bool(cluster),
        }
        try:
            _snakemake(runs.resolve(), plan, profile, extra)
        except (SystemExit, UserError, OSError) as error:
            untold = not isinstance(error, SystemExit)  # no stage said why: perhaps none could write it
            if is_full(error) or (untold and nearly_full(runs)):
                raise full(runs) from None
            _report_the_rest(runs.resolve(), plan)
            raise
    return folders


def _make_way(runs: Path, found: Sequence[Named], measured: Sequence[str]) -> None:
    """Make each recipe's folder, and drop what is outdated there; `measured`: the devices that are measured now."""
    folders = [runs / one.name for one in found]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    outdated = [path for one in found for path in outdated_records(runs, one, measured)] + other_comparison(runs, found)
    for path in outdated:  # all were looked at first
        path.unlink()
    for one in found:
        claim_folder(runs, one)
    for folder in folders:
        if clear_failures(folder):  # a report that names them is outdated
            (folder / "report.html").unlink(missing_ok=True)


def require_known(devices: Sequence[str], cluster: str | None) -> Path | None:
    """Give the folder of a cluster's profile; UserError where that or a device is unknown, with the known names."""
    for device in devices:
        find_device(device)
    if cluster is None:
        return None
    shipped = sorted(path.parent.name for path in PROFILES.glob("*/config.yaml"))
    folder = PROFILES / cluster if cluster in shipped else Path(cluster).resolve()
    if not (folder / "config.yaml").is_file():
        raise UserError(
            "E_CLUSTER", f"{unknown('cluster', cluster, shipped)}; others: a folder that holds Snakemake's config.yaml"
        )
    if cluster in shipped and find_spec(f"snakemake_executor_plugin_{cluster}") is None:
        raise UserError(
            "E_CLUSTER", f"CLUSTER={cluster}: Snakemake's executor for it is not installed: make setup-cluster"
        )
    return folder


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is clean, and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "finished stages stay, training continues from its last checkpoint"
        sys.stderr.write(f"interrupted: {kept}: run it again\n")
        raise SystemExit(130) from None


@contextmanager
def stage_call(label: str, runs: Path) -> Iterator[bool]:
    """Call one stage: under the lock, or, inside a run (True), which holds it, telling the run what went wrong."""
    inside_a_run = bool(os.environ.get(EVENTS_VARIABLE))
    progress = StageProgress(label)
    try:
        with (
            nullcontext() if inside_a_run else interruptible(),
            nullcontext() if inside_a_run or not runs.is_dir() else locked(runs),
            nullcontext() if inside_a_run else shown(),
        ):
            progress.busy("starting")
            yield inside_a_run
            progress.end()
    except Exception as fault:
        error = explained(fault, runs)
        if not inside_a_run:
            raise error from None
        mistake = isinstance(error, UserError)
        with suppress(OSError):  # of a full disk it cannot even be written
            progress.error(str(error) if mistake else f"{label}: {error!r}")
        if not mistake:
            raise  # a fault of ours: the log keeps its traceback
        raise SystemExit(2) from None


def _snakemake(runs: Path, plan: Json, profile: Path | None, extra: Sequence[str]) -> None:
    several = len(plan["recipes"]) > 1
    targets = list(dict.fromkeys(plan["compared"]))
    if several:
        targets.append(f"{COMPARISON}/report.html")
    events = {name: runs / name / "events.jsonl" for name in [*plan["recipes"], *([COMPARISON] if several else [])]}
    for path in events.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    write_record(runs / ".plan.json", plan)
    log = (runs if several else next(iter(events.values())).parent) / "snakemake.log"
    devices = [f"device_{number}=1" for number in range(len(plan["devices"]))]
    # One more than this machine's cores for each device that works alone; what works here shares `here`.
    cores = str(plan["cores"] + sum(not device["here"] for device in plan["devices"]))
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(runs)),
        *(("--profile", str(profile), "--local-cores", cores) if profile else ("--cores", cores)),
        *("--nolock", "--rerun-incomplete", "--keep-going", "--rerun-triggers", "mtime", "params"),
        # Inputs count by content: a record is small, but no limit means that no touched file ever reruns a stage.
        *("--max-checksum-file-size", "10G"),
        *("--resources", *([] if profile else [f"gpu={plan['train_processes']}"]), f"here={plan['cores']}", *devices),
        *extra,
        *("--configfile", str(runs / ".plan.json"), "--", *targets),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(profile))
        try:
            errors = _follow(process, events if several else {"": next(iter(events.values()))}, log)
        except KeyboardInterrupt:
            _let_jobs_be_cancelled(process, plan)
            raise
    if process.returncode:
        if errors:  # said when it happened
            raise SystemExit(2)
        raise UserError("E_RUN_STOPPED", _last_words(log))


def _environment(profile: Path | None = None) -> dict[str, str]:
    """What Snakemake and its stages find in their environment: also executors that a profile brings in `plugins`."""
    paths = [str(profile / "plugins") if profile else "", os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "AFPKD_DATA": str(data_root().resolve()),
        PARENT_VARIABLE: str(os.getpid()),
        **({INVENTORY_VARIABLE: str(inventory_path().resolve())} if inventory_path().exists() else {}),
    }


def _report_the_rest(runs: Path, plan: Json) -> None:
    """What failed keeps nobody from the report of the others: a device that failed is named in it."""
    started = [name for name in plan["recipes"] if any((runs / name / role / "record.json").exists() for role in ROLES)]
    wanted = {name: [name] for name in plan["recipes"] if failures(runs / name)}
    wanted |= {COMPARISON: started} if len(plan["recipes"]) > 1 and started else {}
    for folder, names in wanted.items():
        files = [plan["recipes"][name]["file"] for name in names]
        command = [sys.executable, "-m", "pipeline", "report", "--recipes", *files]
        command += ["--out", str(runs / folder), "--runs", str(runs)]
        environment = {**_environment(), EVENTS_VARIABLE: str(runs / folder / "events.jsonl")}
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0:
            sys.stderr.write(f"report without what failed: {runs / folder / 'report.html'}\n")


def _let_jobs_be_cancelled(process: subprocess.Popen[bytes], plan: Json) -> None:
    """Leave time to cancel jobs on other machines; a terminal's Ctrl-C has interrupted Snakemake and stages as well."""
    if plan["cluster"] or any(find_device(device["name"]).address for device in plan["devices"]):
        with suppress(subprocess.TimeoutExpired):
            process.wait(CANCEL_SECONDS)
    if plan["cluster"] and process.poll() is None:  # it was not interrupted: nobody typed
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(CANCEL_SECONDS)


def _follow(process: subprocess.Popen[bytes], events: Mapping[str, Path], log: Path) -> list[str]:
    """Show what the stages say until the process ends; return their errors. events: file of each run's name."""
    errors, whole, told_since = list[str](), StageProgress(WHOLE), False
    with shown() as screen, ExitStack() as stack:
        files = {name: stack.enter_context(path.open(encoding="utf-8")) for name, path in events.items()}
        whole.busy("planning")
        ended = False
        while not ended:
            ended = process.poll() is not None  # one more look at the events after the end
            for name, event in ((name, event) for name, file in files.items() for event in new_events(file)):
                shown_event = _of_run(name, event, errors)
                told_since = "error" not in shown_event and (told_since or "text" in shown_event)
                screen.show(shown_event)
            if not ended:
                done, planned = _num_stages(log)
                if planned:
                    whole.step(done, planned, note=f"{done} of {planned} stages")
                time.sleep(POLL_SECONDS)
        if errors and told_since:  # the other stages went on, and it is out of sight
            whole.say(_reminder(errors))
    return errors


def _reminder(errors: Sequence[str]) -> str:
    """The last line of a run whose error was said long before its end."""
    codes = dict.fromkeys(re.findall(r"\[(E_[A-Z_]+)\]$", "\n".join(errors), flags=re.MULTILINE))
    more = "".join(f"; afpkd explain {code}" for code in codes)
    return f"stopped by {'an error' if len(errors) == 1 else f'{len(errors)} errors'}, said above{more}"


def _of_run(name: str, event: Json, errors: list[str]) -> Json:
    """The event under its run's name; a new error joins `errors`, one that was said already only ends its job."""
    named = {**event, "stage": f"{name} {event['stage']}".lstrip()}
    if "error" not in event:
        return named
    error = event["error"] if event["error"].startswith(name) else f"{name}: {event['error']}"
    if error in errors:  # stages side by side stumble over the same thing
        return {"stage": named["stage"], "job": event["job"], "ended": True}
    errors.append(error)
    return {**named, "error": error}


def _num_stages(log: Path) -> tuple[int, int]:
    """How many stages are done, and of how many; (0, 0) where Snakemake has not said it yet."""
    text = log.read_text(errors="replace")
    planned = re.search(r"^total +(\d+)", text, flags=re.MULTILINE)
    return len(re.findall(r"^\d+ of \d+ steps", text, flags=re.MULTILINE)), int(planned[1]) if planned else 0


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"the run stopped: {lines[-1] if lines else 'no output'}: see {log}"
