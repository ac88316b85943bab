"""Detection on real images, on a CPU or GPU: BCCD, FCOS, `none`, `imitation` and `afpkd` by one recipe, three seeds.

`python -m bench.detection` prints the table of results/bccd.jsonl (`--device cuda`: bccd_gpu.jsonl). `--trials` tries
each method's weights on the held-out images, the students of all trials side by side for three quarters of the schedule
(results/bccd_tuning.jsonl): the best go into the recipe by hand. `--run` trains what is missing by that recipe, as
anybody would (hours; stop it at any time, the next call goes on). The teacher comes first and is shared. It must have
learnt (the recipe's min_ap50), and be better than the undistilled student of seed 0 by HEADROOM: else there is nothing
to distil, and nothing counts. All students of a seed start from the same weights and see the same batches. Test is read
once a run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from afpkd.errors import UserError
from afpkd.record import Json, read_record
from bench import rows
from bench.accuracy import shared, train_side_by_side, written_run
from bench.command import run as run_command
from bench.variants import ALL, ONE, Protocol
from pipeline.networks import network_of
from pipeline.recipe_reader import load_recipe
from pipeline.stages import train_teacher, tune_prompts
from pipeline.train_device import machine_with
from pipeline.workspace import Run, Workspace

VARIANTS: dict[str, Json] = {
    "none": {"method": "none"},
    "imitation": {"method": "imitation"},
    "afpkd": {"method": "afpkd"},
    "reviewkd": {"method": "reviewkd"},
    "no mask": {"method": "afpkd", "mask": "constant", "mu": 2.45},
}
"""Each with the recipe's weights; a constant mask's `mu` is raised to the prompts' gradient on the first batch."""

SEEDS = {"none": ALL, "imitation": ALL, "afpkd": ALL, "reviewkd": ONE, "no mask": ONE}
PROTOCOL = Protocol("bccd-fcos-cpu", "bccd", VARIANTS, SEEDS)
TUNING = "bccd_tuning"

GAMMAS = (0.02, 0.06, 0.2, 0.6, 2.0)
TRIALS: dict[str, list[Json]] = {
    "none": [{"lr": lr} for lr in (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)],
    "imitation": [{"relative": True, "gamma": gamma} for gamma in GAMMAS],
    "afpkd": [{"relative": True, "mu": 10 * gamma, "gamma": gamma} for gamma in GAMMAS],
    "reviewkd": [{"relative": True, "gamma": gamma} for gamma in GAMMAS],
}
"""What is tried of each method, `none` first: its best rate is the recipe's, and all others' trials are at that. On the
first batch the gradient of the task's losses has a norm of some 3, that of the squared error and of HCL 17 and 14 at
gamma 1, that of the frequency loss 1.3 at mu 1: tried is what begins at a tenth of the task's to ten times as much.
(Without `relative` the squared error's is 1.9 million: the teacher of this rate has features in the hundreds.)"""

SHARE = 3 / 4
"""Of the schedule, which a trial gets whole: learning rate, warm-up and all."""

LEARNT = 10.0
"""Held-out AP that the best trial of a method must have: below, trials are too short to choose by."""

HEADROOM = 3.0
"""By so much the teacher's held-out AP must be above the undistilled student's."""


def main(arguments: list[str]) -> None:
    """Train or try what is missing; print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.detection")
    parser.add_argument("--trials", action="store_true", help="try the weights of each method first")
    parser.add_argument("--run", action="store_true", help="train the missing rows first")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(ALL))
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--folder", type=Path, default=Path("runs") / PROTOCOL.folder, help="where runs and states lie")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all of it is trained")
    chosen = parser.parse_args(arguments)
    if chosen.trials:
        try_weights([name for name in chosen.variants if name in TRIALS], chosen.folder, chosen.device)
    for seed in chosen.seeds if chosen.run else ():
        train_seed(seed, chosen.variants, chosen.folder, chosen.device)
    sys.stdout.write(trials_table(rows.read(TUNING)) + "\n" + table(rows.read(protocol_on(chosen.device).result)))


def protocol_on(device: str) -> Protocol:
    """On a GPU all variants have all seeds, and rows of their own; the teacher may be one that a CPU has trained."""
    return PROTOCOL.on_gpu() if device == "cuda" else PROTOCOL


def try_weights(methods: list[str], folder: Path, device: str = "cpu") -> None:
    """Train all trials that have no row side by side, on seed 0; only held-out images are looked at."""
    epochs = load_recipe(PROTOCOL.recipe)[1].distill.epochs * SHARE
    runs = {}
    for method, trial in ((one, trial) for one in methods for trial in TRIALS[one]):
        name = "-".join([method, *(f"{value:g}" for value in trial.values())])
        variant = {"method": method, "epochs": epochs, **trial}
        run = run_of(name, variant, 0, folder / "trials", folder, device)
        digest = run.recipe.stage_digest("student")
        if not any(row["config_digest"] == digest for row in rows.read(TUNING)):
            runs[name] = run, trial
    works = [Workspace(run, "student") for run, _ in runs.values()]
    trained = train_side_by_side(works) if works else []
    for (run, trial), (_, _, fitted) in zip(runs.values(), trained, strict=True):
        last = {key: fitted.history[-1][key] for key in ("losses", "gradient_norms")}
        settings, digest = run.recipe.distill, run.recipe.stage_digest("student")
        found = rows.trial_of({"lr": settings.lr, **trial}, seed=0, epochs=epochs, fitted=fitted, metric="ap")
        on = rows.machine_of({"machine": machine_with(works[0].device)})
        rows.append(TUNING, [{"method": settings.method, **found, **last, "config_digest": digest, "machine": on}])


def train_seed(seed: int, names: list[str], folder: Path, device: str = "cpu") -> None:
    """Train what this seed shall have and has no row of, side by side, and append a row each.

    The undistilled student of seed 0 comes alone, and first: it says whether there is anything to distil.
    """
    wanted = [name for name in VARIANTS if name in names and seed in protocol_on(device).seeds[name]]
    runs = {name: run_of(name, VARIANTS[name], seed, folder, folder, device) for name in wanted}
    due = [run for name, run in runs.items() if not has_row(run, name)]
    if seed == 0 and due and due[0].name == "none":
        _train(due[:1], seed)
        due = due[1:]
    if due:
        require_headroom(due[0])
        _train(due, seed)


def has_row(run: Run, name: str) -> bool:
    """Whether there is a row of this variant, its seed and its recipe."""
    return any(rows.stands(row, name, run.recipe) for row in rows.read(protocol_on(run.device).result))


def require_headroom(run: Run) -> None:
    """UserError where the teacher of this run is hardly better than a student without one."""
    found = rows.read(protocol_on(run.device).result)
    undistilled = [row for row in found if (row["method"], row["seed"]) == ("none", 0)]
    if not undistilled:
        raise UserError("E_TEACHER", "there is no row of `none` with seed 0 yet: train it first")
    teacher = read_record(run.role("teacher") / "record.json")
    theirs, ours = teacher["metrics"]["heldout_ap"], undistilled[-1]["heldout_ap"]
    if theirs < ours + HEADROOM:
        told = f"the teacher's held-out AP is {theirs:.2f} %, the undistilled student's {ours:.2f} %"
        raise UserError("E_TEACHER", f"{told}: less than {HEADROOM:g} points above it there is nothing to distil")


def run_of(name: str, variant: Json, seed: int, place: Path, folder: Path, device: str = "cpu") -> Run:
    """The run of a variant, written to `place`; teacher (of seed 0) and prompts are made once in `folder` and linked.

    UserError where the teacher has not learnt.
    """
    taught = written_run("teacher", {"method": "none"}, 0, folder, PROTOCOL.recipe, device)
    teacher = folder / f"teacher-{taught.recipe.stage_digest('teacher')[:8]}"
    shared(taught, "teacher", teacher, train_teacher)
    score, least = teacher_ap50(taught), taught.recipe.teacher.min_ap50  # type: ignore[union-attr]  # it detects
    if score < least:
        raise UserError("E_TEACHER", f"the teacher's AP50 is {score:.2f} %, below {least:g}: it has not learnt")
    run = written_run(name, variant, seed, place, PROTOCOL.recipe, device)
    shared(run, "teacher", teacher, train_teacher)
    if run.recipe.distill.uses_prompts:
        digest = run.recipe.stage_digest("prompts")[:8]
        shared(run, "prompts", folder / f"prompts-{digest}-seed{seed}", tune_prompts)
    return run


def teacher_ap50(run: Run) -> float:
    """AP50 of the teacher on test, in percent."""
    score: float = read_record(run.role("teacher") / "record.json")["metrics"]["test_ap50_selected"]
    return score


def _train(runs: list[Run], seed: int) -> None:
    works = [Workspace(run, "student") for run in runs]
    for work, product, fitted in train_side_by_side(works):
        settings = work.run.recipe.distill
        network = network_of(work.run.recipe, "student")
        record = work.write_checkpoint(product, fitted, network=network, method=settings.method)
        rows.append(protocol_on(work.run.device).result, [row_of(work.run, record, seed)])


def row_of(run: Run, record: Json, seed: int) -> Json:
    """The row of a finished student; `ap`, `ap50`, `ap75`: test, of the epoch that was best on held-out images."""
    metrics, prompts = record["metrics"], run.role("prompts") / "record.json"
    judged = read_record(prompts)["metrics"] if run.recipe.distill.uses_prompts else None
    return {
        "method": record["method"],
        "variant": "default" if run.name == record["method"] else run.name,
        "seed": seed,
        "options": run.recipe.distill.options(),
        **{name: metrics[f"test_{name}_selected"] for name in ("ap", "ap50", "ap75")},
        "ap_last": metrics["test_ap_last"],
        "heldout_ap": metrics["heldout_ap"],
        "teacher_ap50": teacher_ap50(run),
        "prompts": judged and {key: judged[key] for key in ("accepted", "own", "shuffled", "constant")},
        **{key: record[key] for key in ("epochs", "wall_s", "cpu_s", "precision", "config_digest")},
        "machine": rows.machine_of(record),
        "commit": record["git_commit"],
    }


def trials_table(found: list[Json]) -> str:
    """Markdown: each method's trials, the best marked, and why it is not chosen where it is not."""
    lines = ["| method | options | held-out AP | |", "|---|---|---:|---|"]
    for method in TRIALS:
        mine = [row for row in found if row["method"] == method]
        best = max(mine, key=lambda row: row["heldout_ap"], default=None)
        for row in mine:
            options = ", ".join(name if at is True else f"{name} {at:g}" for name, at in row["options"].items())
            verdict = (why_not_chosen(mine) or "chosen") if row is best else ""
            lines.append(f"| `{method}` | {options} | {row['heldout_ap']:.2f} | {verdict} |")
    return "\n".join(lines) + "\n"


def why_not_chosen(trials: list[Json]) -> str | None:
    """Why the best of a method's trials says nothing yet, or None. Its last option is judged among its like.

    (Weights that stand in one proportion, as AFPKD's two, are one option.)
    """
    best = max(trials, key=lambda row: row["heldout_ap"])
    if best["heldout_ap"] < LEARNT:
        return f"no trial reaches {LEARNT:g} %: give trials more of the schedule"
    *_, last = best["options"]
    same = {"lr", "relative"} - {last}
    alike = [row for row in trials if all(row["options"].get(key) == best["options"].get(key) for key in same)]
    tried = sorted(row["options"][last] for row in alike)
    if len(tried) > 2 and best["options"][last] in (tried[0], tried[-1]):
        return "at the end of what was tried: try further"
    return None


def table(found: list[Json]) -> str:
    """Markdown: mean ± standard deviation over the seeds, in percent, and AFPKD's AP less the method's, paired.

    Of a variant and seed the newest row counts: those before are of a recipe since changed.
    """
    titles = "method | seeds | AP | AP50 | AP75 | `afpkd` minus it, AP, 95 % | CPU-minutes per run"
    lines = [f"| {titles} |", "|---|---:|---:|---:|---:|---:|---:|"]
    newest = {(rows.name_of(row), row["seed"]): row for row in found}
    by_name = {name: {seed: row for (one, seed), row in newest.items() if one == name} for name in VARIANTS}
    ap = {name: {seed: row["ap"] for seed, row in mine.items()} for name, mine in by_name.items()}
    for name, mine in ((name, list(by_seed.values())) for name, by_seed in by_name.items() if by_seed):
        scores = [rows.mean_and_std([row[key] for row in mine]) for key in ("ap", "ap50", "ap75")]
        apart = "" if name == "afpkd" else rows.paired_difference(ap["afpkd"], ap[name])
        minutes = statistics.mean(row["cpu_s"] for row in mine) / 60
        lines.append(f"| {' | '.join([f'`{name}`', str(len(mine)), *scores, apart, f'{minutes:.0f}'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
