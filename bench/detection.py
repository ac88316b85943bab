"""Detection on real images on a CPU: BCCD, FCOS, `none`, `imitation` and `afpkd` by one recipe, three seeds.

`python -m bench.detection` prints the table of results/bccd.jsonl; `--run` does what is missing, one run after the
other on one thread (about five CPU-hours; stop it at any time, the next call goes on). The teacher comes first and is
shared; where it stays below the recipe's min_ap50 it has not learnt, and nothing counts. Then each method's weights are
chosen on the held-out images, as many short trials each (results/bccd_tuning.jsonl). All students of a seed start from
the same weights and see the same batches. Test is read once a run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from afpkd.errors import UserError
from afpkd.record import Json, read_record
from bench import rows
from bench.accuracy import shared
from pipeline.recipe_reader import load_recipe
from pipeline.stages import distillation, train_student, train_teacher, train_undistilled, tune_prompts
from pipeline.workspace import Run, Workspace

PROTOCOL = "bccd-fcos-cpu"
RESULT, TUNING = "bccd", "bccd_tuning"
SEEDS = (0, 1, 2)
THREADS = 1

TRIALS: dict[str, list[Json]] = {
    "none": [],
    "imitation": [{"gamma": gamma} for gamma in (0.02, 0.1, 0.5, 2.0)],
    "afpkd": [{"mu": 25 * gamma, "gamma": gamma} for gamma in (0.02, 0.1, 0.5, 2.0)],
}
"""The weights that are tried. At 25 : 1 both parts of afpkd start with gradients of about one size."""

_TUNING_SHARE = 1 / 12


def main(arguments: list[str]) -> None:
    """Train or try what is missing; print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.detection")
    parser.add_argument("--run", action="store_true", help="train the missing rows first")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--methods", nargs="*", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-detection"), help="where runs and states lie")
    chosen = parser.parse_args(arguments)
    if chosen.run:
        for method, options in untried(chosen.methods):
            rows.append(TUNING, [tried(method, options, chosen.folder)])
        for seed, method in missing(chosen.seeds, chosen.methods):
            rows.append(RESULT, [trained(method, seed, chosen.folder)])
    sys.stdout.write(table(rows.read(RESULT)))


def missing(seeds: list[int], methods: list[str]) -> list[tuple[int, str]]:
    """(seed, method) without a row, a seed after the other."""
    found = {(row["seed"], row["method"]) for row in rows.read(RESULT)}
    return [(seed, method) for seed in seeds for method in methods if (seed, method) not in found]


def untried(methods: list[str]) -> list[tuple[str, Json]]:
    """(method, options) that no row of the tuning has."""
    found = [(row["method"], row["options"]) for row in rows.read(TUNING)]
    wanted = [(method, options) for method in methods for options in TRIALS[method]]
    return [trial for trial in wanted if trial not in found]


def weights_of(method: str) -> Json:
    """The options that were best on the held-out images."""
    trials = [row for row in rows.read(TUNING) if row["method"] == method and row["options"] in TRIALS[method]]
    best: Json = max(trials, key=lambda row: row["heldout_ap"])["options"] if TRIALS[method] else {}
    return best


def trained(method: str, seed: int, folder: Path) -> Json:
    """Train one student, and give its row."""
    run = run_of(method, weights_of(method), seed, folder)
    record = train_undistilled(run) if method == "none" else train_student(run)
    metrics = record["metrics"]
    return {
        "method": method,
        "seed": seed,
        "options": weights_of(method),
        **{name: metrics[f"test_{name}_selected"] for name in ("ap", "ap50", "ap75")},
        "ap_last": metrics["test_ap_last"],
        "heldout_ap": metrics["heldout_ap"],
        "teacher_ap50": teacher_ap50(run),
        "epochs": record["epochs"],
        "wall_s": record["wall_s"],
        "cpu_s": record["cpu_s"],
        "precision": record["precision"],
        "commit": record["git_commit"],
        "config_digest": record["config_digest"],
    }


def tried(method: str, options: Json, folder: Path) -> Json:
    """Train a student for a part of the schedule; only held-out images are looked at."""
    run = run_of(method, options, 0, folder, share=_TUNING_SHARE)
    work = Workspace(run, "student")
    fitted = work.fit(distillation(work, *work.teacher()), run.recipe.distill)
    best = max(row["heldout_ap"] for row in fitted.history)
    return {
        "method": method,
        "options": options,
        "epochs": len(fitted.history),
        "heldout_ap": best,
        "cpu_s": fitted.cpu_s,
    }


def run_of(method: str, options: Json, seed: int, folder: Path, share: float = 1.0) -> Run:
    """The run of a method: its recipe written out; teacher and prompts are made once and linked.

    UserError where the teacher has not learnt.
    """
    epochs = load_recipe(PROTOCOL)[1].distill.epochs * share
    name = "-".join([method, *(f"{value:g}" for value in options.values() if share < 1), f"seed{seed}"])
    place = (folder / name).resolve()
    place.mkdir(parents=True, exist_ok=True)
    lines = [f'extends = "{PROTOCOL}"', f"seed = {seed}", "[distill]", f'method = "{method}"', f"epochs = {epochs}"]
    file = place / f"{name}.toml"
    file.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in options.items())]) + "\n")
    run = Run(name, load_recipe(str(file))[1], file, place, "cpu", THREADS)
    shared(run, "teacher", folder / "teacher", train_teacher)
    least = run.recipe.teacher.min_ap50  # type: ignore[union-attr]  # a recipe that detects
    if teacher_ap50(run) < least:
        raise UserError(
            "E_TEACHER", f"the teacher's AP50 is {teacher_ap50(run):.2f} %, below {least:g}: it has not learnt"
        )
    if run.recipe.distill.uses_prompts:
        shared(run, "prompts", folder / f"prompts-seed{seed}", tune_prompts)
    return run


def teacher_ap50(run: Run) -> float:
    """AP50 of the teacher on test, in percent."""
    score: float = read_record(run.role("teacher") / "record.json")["metrics"]["test_ap50_selected"]
    return score


def table(found: list[Json]) -> str:
    """Markdown: mean ± standard deviation over the seeds, in percent."""
    lines = ["| method | seeds | AP | AP50 | AP75 | CPU-minutes per run |", "|---|---:|---:|---:|---:|---:|"]
    for method in TRIALS:
        mine = [row for row in found if row["method"] == method]
        if mine:
            scores = [rows.mean_and_std([row[name] for row in mine]) for name in ("ap", "ap50", "ap75")]
            minutes = statistics.mean(row["cpu_s"] for row in mine) / 60
            lines.append(f"| {' | '.join([f'`{method}`', str(len(mine)), *scores, f'{minutes:.0f}'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
