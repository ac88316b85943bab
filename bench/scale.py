"""How does cost grow? A training step, a report, a run with nothing to do: straight lines, or named as none.

`make bench ARGS=scale` writes results/scale.json; run nothing beside it. Each point of the first two is a fresh
process, whose peak memory is its own. A step is AFPKD's, on a CPU, of one thread, with random weights: against the
images of a batch and the pixels of an image (ResNet-20 -> ResNet-8), and against the levels that are imitated (all of
one size, so that each costs the same). A report: against the measured files that it shows. A run with nothing to do:
`afpkd run profile` where all is up to date, against the recipes it looks at; the goal is 15 s for 100.

line: least squares. deviation: how far the worst point is from it, relative to what was measured there.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afpkd.errors import UserError
from afpkd.record import Json, read_record, write_record
from bench.command import run
from bench.crash import RECIPE
from bench.export_time import peak_bytes
from bench.rows import RESULTS, circumstances
from pipeline.recipe_reader import load_recipe

GOAL_S = 15.0  # of a run with nothing to do, 100 recipes
BATCH, SIDE, LEVELS = 64, 32, 3  # where something else grows
STRAIGHT = 0.2  # worst deviation of what is called a straight line


class Sizes(NamedTuple):
    """The points that are measured."""

    batches: Sequence[int] = (16, 32, 64, 128, 256)
    sides: Sequence[int] = (32, 48, 64, 80, 96)
    levels: Sequence[int] = (1, 2, 3, 4, 6, 8)
    profiles: Sequence[int] = (10, 100, 1000)
    recipes: Sequence[int] = (1, 10, 100)
    steps: int = 7
    """Timed, after two that are not; their median counts."""


FULL = Sizes()


def main(sizes: Sizes = FULL, results: Path = RESULTS) -> None:
    """Measure everything, write scale.json into `results`, print its table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finished = finished_run(folder)
        found: Json = {
            **step_growth(sizes),
            "report": grown("profiles", (report_cost(finished, folder, num) for num in sizes.profiles)),
            "nothing to do": grown("recipes", (idle_cost(finished, folder / f"idle{n}", n) for n in sizes.recipes)),
        }
    write_record(results / "scale.json", {**found, "goal_s": GOAL_S, "conditions": _conditions(sizes)})
    sys.stdout.write(table(found))


def step_growth(sizes: Sizes) -> Json:
    """A training step's time and memory, against each of what makes it larger."""

    def points(key: str, values: Iterable[int], size: Callable[[int], tuple[int, int, int]]) -> Json:
        return grown(key, ({key: value, **_fresh("step", *size(value), sizes.steps)} for value in values))

    return {
        "step, batch": points("images", sizes.batches, lambda batch: (batch, SIDE, 0)),
        "step, resolution": points(
            "pixels", (side * side for side in sizes.sides), lambda pixels: (BATCH, round(pixels**0.5), 0)
        ),
        "step, levels": points("levels", sizes.levels, lambda levels: (BATCH, SIDE, levels)),
    }


def grown(key: str, points: Iterable[Json]) -> Json:
    """Points, each with `key` and what was measured there, and the line through each kind of measurement."""
    rows = list(points)
    measured = [name for name in rows[0] if name != key]
    lines = {name: line([row[key] for row in rows], [row[name] for row in rows]) for name in measured}
    return {"against": key, "points": rows, "lines": lines}


def line(sizes: Sequence[float], values: Sequence[float]) -> Json:
    """The least-squares line: slope, intercept, R^2, and the worst relative deviation of a point from it."""
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    slope, intercept = np.polyfit(x, y, 1)
    residuals = y - (slope * x + intercept)
    spread = float(((y - y.mean()) ** 2).sum())
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "r_squared": 1 - float((residuals**2).sum()) / spread if spread else 1.0,
        "deviation": float(np.abs(residuals / y).max()),
    }


def table(found: Json) -> str:
    """Markdown: a kind of growth and a measurement a line."""
    rows = ["| what grows | against | measured | from | to | slope | R² | deviation |", f"|---|---|---|{'---:|' * 5}"]
    for name, growth in found.items():
        for measured, fitted in growth["lines"].items():
            ends = [growth["points"][index][measured] for index in (0, -1)]
            ends_told, slope = " | ".join(f"{end:.4g}" for end in ends), f"{fitted['slope']:.3g}"
            bent = "" if fitted["deviation"] <= STRAIGHT else " (no straight line)"
            fit = f"{fitted['r_squared']:.4f} | {fitted['deviation']:.0%}{bent}"
            rows.append(f"| {name} | {growth['against']} | {measured} | {ends_told} | {slope} | {fit} |")
    return "\n".join(rows) + "\n"


def finished_run(folder: Path) -> Path:
    """A tiny recipe brought to its report: give the run's folder."""
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    _afpkd_run([recipe], folder / "runs")
    return folder / "runs" / "tiny"


def report_cost(finished: Path, folder: Path, num: int) -> Json:
    """A report of a finished run with `num` measured files: its own, said to be of as many devices as it takes."""
    run_folder = folder / f"report{num}" / finished.name
    shutil.copytree(finished, run_folder, ignore=shutil.ignore_patterns("profiles", "*.onnx", "*.safetensors"))
    own = [read_record(path) for path in sorted(finished.glob("profiles/*/[!.]*.json"))]
    for number in range(num):
        profile, device = own[number % len(own)], f"device{number // len(own)}"
        rows = [{**row, "device": device} for row in profile["rows"]]
        name = f"{profile['role']}-{profile['precision']}.json"
        write_record(run_folder / "profiles" / device / name, {**profile, "device": device, "rows": rows})
    cost = _fresh("report", run_folder)
    shutil.rmtree(run_folder.parent)
    return {"profiles": num, **cost}


def idle_cost(finished: Path, folder: Path, num: int) -> Json:
    """A run of `num` recipes where all is done: copies of a finished one under other names and seeds."""
    recipes = [_copied(finished, folder, number) for number in range(num)]
    _afpkd_run(
        recipes, folder / "runs", "--snakemake=--touch --forceall"
    )  # Snakemake's own notes on files that it did not make
    _afpkd_run(recipes, folder / "runs")  # the report that compares several is made now
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*.json") if ".snakemake" not in path.parts}
    cost = _fresh("idle", folder / "runs", *recipes)
    again = [path for path, when in made.items() if not path.exists() or path.stat().st_mtime_ns != when]
    if again:
        raise UserError("E_BENCH", f"a run with nothing to do made {again[0]} anew: no such run was measured")
    shutil.rmtree(folder)
    return {"recipes": num, **cost}


def _copied(finished: Path, folder: Path, number: int) -> Path:
    """A finished run under another recipe, which differs by its seed: its records are given that identity."""
    recipe, run_folder = folder / f"tiny{number}.toml", folder / "runs" / f"tiny{number}"
    shutil.copytree(finished, run_folder)
    recipe.write_text(f"seed = {number}\n{RECIPE}", encoding="utf-8")
    decoded = load_recipe(str(recipe))[1]
    for stage in ("teacher", "prompts", "student", "undistilled"):
        path = run_folder / stage / "record.json"
        write_record(path, {**read_record(path), "config_digest": decoded.stage_digest(stage)})
    for path in run_folder.glob("*/bundle/manifest.json"):
        manifest = read_record(path)
        manifest["lineage"]["config_digest"] = decoded.stage_digest("export")
        write_record(path, manifest)
    return recipe


def _afpkd_run(recipes: Sequence[Path], runs: Path, *options: str) -> None:
    """`afpkd run profile` for these recipes, in one graph. UserError where it fails."""
    named = [word for recipe in recipes for word in ("--recipe", str(recipe))]
    command = [sys.executable, "-m", "pipeline", "run", "profile", *named, "--runs", str(runs), "--train-device", "cpu"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError("E_BENCH", f"{runs}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")


def _fresh(what: str, *arguments: object) -> Json:
    """`_once` in a process of its own, which inherits no peak of this one's."""
    command = [sys.executable, "-m", "bench.scale", what, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: Json = json.loads(done.stdout.splitlines()[-1])
    return row


def _once(arguments: Sequence[str]) -> None:
    what, *rest = arguments
    if what == "idle":
        started = time.perf_counter()
        _afpkd_run([Path(recipe) for recipe in rest[1:]], Path(rest[0]))
        seconds = time.perf_counter() - started
        peak: int | None = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of its largest process
    else:
        seconds = _step_seconds(*map(int, rest)) if what == "step" else _report_seconds(Path(rest[0]))
        peak = peak_bytes()
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_bytes": peak}) + "\n")


def _report_seconds(run_folder: Path) -> float:
    from pipeline.report.records import read_records
    from pipeline.report.writing import write_report

    started = time.perf_counter()
    write_report([read_records(run_folder, run_folder.name)], run_folder)
    return time.perf_counter() - started


def _step_seconds(batch: int, side: int, levels: int, steps: int) -> float:
    from bench.scale_step import fitting_of

    with tempfile.TemporaryDirectory() as folder:
        fitting = fitting_of(Path(folder), batch=batch, side=side, levels=levels, steps=steps + 3)
        seconds = []
        for _ in range(steps + 2):
            started = time.perf_counter()
            fitting.advance()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def _conditions(sizes: Sizes) -> Json:
    return {**sizes._asdict(), "batch": BATCH, "side": SIDE, "levels": LEVELS, **circumstances()}


if __name__ == "__main__":
    run(_once)
