"""One finished training = one row of results/NAME.jsonl: `python -m bench.rows NAME RUN_FOLDER [VARIANT]`."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import scipy.stats

from afpkd.record import Json, provenance, read_record, write_text
from pipeline.lineage import CURVES

if TYPE_CHECKING:
    from afpkd.train import Fitted
    from pipeline.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
METRICS = ("test_top1_last", "test_top1_selected", "heldout_top1")


def row_of(run: Path, role: str, variant: str = "default") -> Json:
    """The row of a role of a run: `student`, or `undistilled` as method `none`."""
    record, teacher = read_record(run / role / "record.json"), read_record(run / "teacher" / "record.json")
    return {
        "pair": f"{teacher['arch']}-{record['arch']}",
        "data": record["data"],
        "method": record["method"],
        "variant": variant,
        "seed": record["seed"],
        "epochs": record["epochs"],
        "teacher_top1": teacher["metrics"]["test_top1_selected"],
        **record["metrics"],
        "wall_s": record["wall_s"],
        "cpu_s": record.get("cpu_s"),
        "precision": record.get("precision"),
        "processor": machine_of(record),
        "commit": record["git_commit"],
        "config_digest": record["config_digest"],
        "finished_at": record["finished_at"],
    }


def machine_of(record: Json) -> str | None:
    """What trained: the GPU, or the processor."""
    machine = record.get("machine", {})
    name: str | None = machine.get("gpu") or machine.get("processor")
    return name


def curve_of(run: Path, row: Json) -> Json:
    """What the student of this row did epoch by epoch: losses, the norm of each one's gradient, held-out top-1."""
    lines = (run / "student" / CURVES).read_text().splitlines()
    whose = {key: row[key] for key in ("pair", "method", "variant", "seed", "config_digest")}
    keys = ("epoch", "lr", "losses", "gradient_norms", "heldout_top1")
    return {**whose, "epochs": [{key: json.loads(line)[key] for key in keys} for line in lines]}


def trial_of(options: Json, *, seed: int, epochs: float, fitted: Fitted, metric: str = "top1") -> Json:
    """The row of a trial that chooses a weight: held-out score after the last epoch; the test set is not read."""
    key = f"heldout_{metric}"
    found = {"options": options, "seed": seed, "epochs": epochs, key: fitted.history[-1][key]}
    return {**found, "cpu_s": round(fitted.cpu_s, 1), "commit": provenance()["git_commit"]}


def circumstances() -> Json:
    """When, on which machine and with which code; `load_before`: the load average of the minute before."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "load_before": os.getloadavg()[0], **provenance()}


def append(name: str, rows: list[Json]) -> None:
    """Add rows to results/NAME.jsonl, each run once (by what it is and when it finished)."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with filelock.FileLock(f"{path}.lock"):  # two benches may finish side by side
        lines = path.read_text().splitlines() if path.exists() else []
        new = [line for line in map(json.dumps, rows) if line not in lines]
        write_text(path, "".join(f"{line}\n" for line in [*lines, *new]))


def read(name: str) -> list[Json]:
    """All rows of results/NAME.jsonl; none where nothing was run yet."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stands(row: Json, name: str, recipe: Recipe) -> bool:
    """Whether a row is of this variant, seed and recipe: one of a recipe since changed is not."""
    named = (name_of(row), row["seed"]) == (name, recipe.seed)
    return named and bool(row["config_digest"] == recipe.stage_digest("student"))


def comparison(rows: list[Json]) -> str:
    """Markdown: a variant a line, test top-1 in percent, mean ± standard deviation over its seeds.

    The difference is AFPKD minus this variant, paired by seed (same initial weights, same batches), with the 95 %
    interval of Student's t: it needs two seeds.
    """
    by_variant: dict[str, dict[int, Json]] = {}
    for row in rows:
        by_variant.setdefault(name_of(row), {})[row["seed"]] = row
    titles = "variant | seeds | last epoch | selected epoch | held-out"
    lines = [f"| {titles} | `afpkd` minus it, 95 % | CPU-hours per run |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, found in by_variant.items():
        columns = [[row[key] for row in found.values()] for key in METRICS]
        hours = statistics.mean(row["cpu_s"] for row in found.values()) / 3600
        cells = [f"`{name}`", str(len(found)), *map(mean_and_std, columns)]
        scores = [_last_scores(by_variant.get(one, {})) for one in ("afpkd", name)]
        cells.append("" if name == "afpkd" else paired_difference(*scores))
        lines.append(f"| {' | '.join(cells)} | {hours:.2f} |")
    return "\n".join(lines) + "\n"


def beside_published(rows: list[Json], recipe: Recipe) -> str:
    """Markdown: what papers report of a pair, as its recipe has it, above our rows' last epoch, mean over the seeds."""
    told = {"none" if name == "undistilled" else name: one.top1 for name, one in recipe.expected.items()}
    ours = {"teacher": rows[0]["teacher_top1"]}
    for method in dict.fromkeys(row["method"] for row in rows if row["variant"] == "default"):
        ours[method] = statistics.mean(row["test_top1_last"] for row in rows if name_of(row) == method)
    names = [*told, *(name for name in ours if name not in told)]
    cells = {
        "top-1": [name if name == "teacher" else f"`{name}`" for name in names],
        f"published, {recipe.distill.epochs:g} epochs": [f"{told[name]:.2f}" if name in told else "" for name in names],
        f"here, {rows[0]['epochs']} epochs": [f"{ours[name]:.2f}" if name in ours else "" for name in names],
    }
    title, *lines = (f"| {name} | {' | '.join(row)} |" for name, row in cells.items())
    return "\n".join([title, "|---|" + "---:|" * len(names), *lines]) + "\n"


def name_of(row: Json) -> str:
    """The name of a row's variant: the method's for its default."""
    name: str = row["method"] if row["variant"] == "default" else row["variant"]
    return name


def mean_and_std(values: list[float]) -> str:
    """Mean ± sample standard deviation, the latter from two values on."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def paired_difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Mean of ours minus theirs over the seeds that both have, with the 95 % interval of Student's t."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return ""
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    if len(seeds) == 1:
        return f"{differences[0]:+.2f} (one seed)"
    half = scipy.stats.t.ppf(0.975, len(seeds) - 1) * statistics.stdev(differences) / len(seeds) ** 0.5
    return f"{statistics.mean(differences):+.2f} ± {half:.2f}"


def _last_scores(found: dict[int, Json]) -> dict[int, float]:
    return {seed: row["test_top1_last"] for seed, row in found.items()}


if __name__ == "__main__":
    result, folder, *rest = sys.argv[1:]
    append(result, [row_of(Path(folder), role, *rest) for role in ("undistilled", "student")])
