"""What a run says before it starts and after it ends."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from afpkd.record import Json, read_record
from pipeline.recipe import ROLES
from pipeline.recipe_reader import load_recipe

_WHAT = {
    "distill": "train the teacher, the prompts, the student and the undistilled control",
    "export": "write one ONNX bundle a network and check it against torch",
    "profile": "measure latency, memory and accuracy of each exported file, and write the report",
    "report": "write the report",
}
_DEFAULTS = {"RECIPE": "default", "DEVICE": "local", "TRAIN_DEVICE": "auto", "TRAIN_PROCESSES": "1", "RUNS": "runs"}
_NEXT = {"distill": "export", "export": "profile"}


def announce(goals: Sequence[str], recipe: str) -> None:
    """Say on stderr what is about to be done."""
    name, decoded = load_recipe(recipe)
    sys.stderr.write(f"{name}: {decoded.description}\n")
    for goal in goals:
        sys.stderr.write(f"  {goal}: {_WHAT[goal]}\n")


def facts(folder: Path) -> Json:
    """What is there of a run: roles, profiles, report."""
    roles = {}
    for role in ROLES:
        if (folder / role / "record.json").is_file():
            record = read_record(folder / role / "record.json")
            roles[role] = {key: record[key] for key in ("arch", "num_params", "metrics")}
    profiles = [read_record(path) for path in sorted(folder.glob("profiles/*/[!.]*.json"))]
    keys = ("device", "role", "precision", "latency_ms", "throughput_ips", "macs", "top1", "verdict", "reasons")
    report = folder / "report.html"
    return {
        "run": str(folder),
        "roles": roles,
        "profiles": [{key: profile[key] for key in keys} for profile in profiles],
        "report": str(report) if report.is_file() else None,
    }


def closing(folder: Path, goals: Sequence[str], variables: dict[str, str]) -> str:
    """A table of what was reached, and the next command with make's `variables`."""
    found = facts(folder)
    key, title = _score(found["roles"])
    width = max([12, *(len(row["arch"]) for row in found["roles"].values())])
    lines = [f"{'':<12} {'arch':<{width}} {title:>10} {'parameters':>12}"]
    for role, row in found["roles"].items():
        lines.append(f"{role:<12} {row['arch']:<{width}} {row['metrics'][key]:>8.2f} % {row['num_params']:>12,}")
    if found["profiles"]:
        lines += ["", f"{'':<12} {'file':<6} {'device':<10} {'p50':>9} {'p90':>9}  verdict"]
        lines += [_profile_line(profile) for profile in found["profiles"]]
    last = goals[-1]
    if last in _NEXT:
        given = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value != _DEFAULTS[name]]
        lines += ["", " ".join(["next: make", _NEXT[last], *given])]
    elif found["report"]:
        lines += ["", f"report: {_shown(Path(found['report']))}", "next: open it in a browser"]
    return "\n".join(lines)


def _score(roles: Json) -> tuple[str, str]:
    """The key of the roles' score, and its title: AP where they detect."""
    detects = any("test_ap_selected" in row["metrics"] for row in roles.values())
    return ("test_ap_selected", "test AP") if detects else ("test_top1_selected", "test top-1")


def _profile_line(profile: Json) -> str:
    latency = profile["latency_ms"]
    numbers = "".join(f" {latency[p]:>6.2f} ms" if latency[p] is not None else f" {'-':>9}" for p in ("p50", "p90"))
    return f"{profile['role']:<12} {profile['precision']:<6} {profile['device']:<10}{numbers}  {profile['verdict']}"


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
