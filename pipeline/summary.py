"""What a run says before it starts and after it ends."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from afpkd.names import in_words
from afpkd.record import Json
from pipeline.plan import COMPARISON
from pipeline.progress import QUIET_VARIABLE
from pipeline.recipe import ROLES
from pipeline.recipe_reader import load_recipe
from pipeline.recorded import TRAINED, recorded
from pipeline.report.records import read_manifests, read_profiles
from pipeline.report.wording import count, percent

_WHAT = {
    "distill": "train the teacher, the prompts, the student and the undistilled control",
    "export": "write one ONNX bundle per network and check it against torch",
    "profile": "measure latency, memory and accuracy of each exported file, and write the report",
    "report": "write the report",
}
_DEFAULTS = {"RECIPE": "default", "DEVICE": "local", "TRAIN_DEVICE": "auto", "TRAIN_PROCESSES": "1", "RUNS": "runs"}
_DEFAULTS["CLUSTER"] = ""
_NEXT = {"distill": "export", "export": "profile"}


def announce(goals: Sequence[str], recipes: Sequence[str]) -> None:
    """Say on stderr what is about to be done."""
    found = list(map(load_recipe, recipes))
    if os.environ.get(QUIET_VARIABLE):
        return
    sys.stderr.writelines(f"{name}: {decoded.description}\n" for name, decoded in found)
    for goal in goals:
        sys.stderr.write(f"  {goal}: {_WHAT[goal]}\n")


def facts(folder: Path) -> Json:
    """What is there of a run: roles, profiles, report."""
    records = {role: recorded(path, *TRAINED) for role in ROLES if (path := folder / role / "record.json").is_file()}
    roles = {role: {key: record[key] for key in ("arch", "num_params", "metrics")} for role, record in records.items()}
    profiles = read_profiles(folder, records, read_manifests(folder))
    keys = ("device", "role", "precision", "latency_ms", "throughput_ips", "macs", "top1", "verdict", "reasons")
    report = folder / "report.html"
    return {
        "run": str(folder),
        "roles": roles,
        "profiles": [{key: profile[key] for key in keys} for profile in profiles],
        "report": str(report) if report.is_file() else None,
    }


def closing(found: Sequence[Json], goals: Sequence[str], variables: Mapping[str, str]) -> str:
    """A table of what was reached, of several runs a row each, and the next command with make's `variables`.

    found: the `facts` of each run.
    """
    lines = _one_run(found[0]) if len(found) == 1 else _several_runs(found)
    last = goals[-1]
    if last in _NEXT:
        lines += ["", f"next: {make_command(_NEXT[last], variables)}"]
    report = report_of(found, goals)
    if report:
        lines += ["", f"report: {shown(report)}"]
        lines += [] if last in _NEXT else ["next: open it in a browser"]
    return "\n".join(lines)


def make_variables(
    recipes: Sequence[str], *, device: str, train_device: str, train_processes: int, runs: Path, cluster: str | None
) -> dict[str, str]:
    """What make is told, by its variables' names."""
    found = {"RECIPE": recipes[0]} if len(recipes) == 1 else {"RECIPES": " ".join(recipes)}
    found |= {"DEVICE": device, "TRAIN_DEVICE": str(train_device), "TRAIN_PROCESSES": str(train_processes)}
    return found | {"RUNS": str(runs), "CLUSTER": cluster or ""}


def make_command(goal: str, variables: Mapping[str, str]) -> str:
    """The command that brings `goal` up to date, with those of make's variables that are not its defaults."""
    given = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value != _DEFAULTS.get(name)]
    return " ".join(["make", goal, *given])


def report_of(found: Sequence[Json], goals: Sequence[str]) -> Path | None:
    """The report that runs up to `goals` have, given their facts: of several the comparison, of one what it made."""
    if len(found) > 1:
        return Path(found[0]["run"]).parent / COMPARISON / "report.html"
    return Path(found[0]["report"]) if found[0]["report"] and goals[-1] not in _NEXT else None


def shown(path: Path) -> Path:
    """As short as it can be said from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _one_run(found: Json) -> list[str]:
    key, title = score_of(found["roles"])
    width = max([12, *(len(row["arch"]) for row in found["roles"].values())])
    lines = [f"{'':<12} {'arch':<{width}} {title:>10} {'parameters':>12}  against undistilled"]
    for role, row in found["roles"].items():
        numbers = f"{percent(row['metrics'].get(key)):>10} {count(row['num_params']):>12}"
        lines.append(f"{role:<12} {row['arch']:<{width}} {numbers}{_gain(found['roles'], role, key)}")
    if found["profiles"]:
        lines += ["", f"{'':<12} {'file':<6} {'device':<10} {'p50':>9} {'p90':>9}  verdict"]
        lines += [_profile_line(profile) for profile in found["profiles"]]
    return lines


def _gain(roles: Json, role: str, key: str) -> str:
    """What distillation brought: the student's score less that of the same network without a teacher."""
    if role != "student" or "undistilled" not in roles:
        return ""
    score, other = (roles[name]["metrics"].get(key) for name in (role, "undistilled"))
    return "" if score is None or other is None else f"  {score - other:+.2f} points"


def _several_runs(found: Sequence[Json]) -> list[str]:
    """A row a run: the roles' scores, and the student's fastest file that may be quoted."""
    width = max(len(Path(run["run"]).name) for run in found)
    title = score_of(found[0]["roles"])[1]
    lines = [f"{title:<{width}} {''.join(f'{role:>13}' for role in ROLES)}   student's fastest"]
    for run in found:
        key = score_of(run["roles"])[0]
        scores = [percent(run["roles"].get(role, {"metrics": {}})["metrics"].get(key)) for role in ROLES]
        sound = [row for row in run["profiles"] if row["role"] == "student" and row["verdict"] != "INVALID"]
        timed = [row for row in sound if row["latency_ms"]["p50"] is not None]
        best = min(timed, key=lambda row: row["latency_ms"]["p50"], default=None)
        fastest = f"{best['precision']} {best['device']} {best['latency_ms']['p50']:.2f} ms" if best else "-"
        lines.append(f"{Path(run['run']).name:<{width}} {''.join(f'{score:>13}' for score in scores)}   {fastest}")
    return lines


def score_of(roles: Json) -> tuple[str, str]:
    """The key of the roles' score, and its title: AP where they detect."""
    metric = metric_of(roles)
    return f"test_{metric}_selected", f"test {in_words(metric)}"


def metric_of(roles: Json) -> str:
    """What the roles are scored by: `ap` where they detect, else `top1`."""
    return "ap" if any("test_ap_selected" in row["metrics"] for row in roles.values()) else "top1"


def _profile_line(profile: Json) -> str:
    latency = profile["latency_ms"]
    numbers = "".join(f" {latency[p]:>6.2f} ms" if latency[p] is not None else f" {'-':>9}" for p in ("p50", "p90"))
    return f"{profile['role']:<12} {profile['precision']:<6} {profile['device']:<10}{numbers}  {profile['verdict']}"
