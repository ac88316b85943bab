"""The default recipe's learning rate and weights, chosen on held-out images; the test set is never read.

`make bench ARGS=default_tuning` trains the trials without a row in results/default_tuning.jsonl (half an hour), those
of a seed side by side on one teacher and one phase 1, with 800 held-out images instead of the recipe's 400: on fewer,
chance chooses. Then it prints the held-out top-1 of every trial, a seed a column.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from afpkd.record import Json
from bench import rows
from bench.accuracy import run_of, train_side_by_side
from pipeline.workspace import Workspace

RESULT = "default_tuning"
HELDOUT = 800
SEEDS = (0, 1, 2)

TRIALS: list[tuple[Json, tuple[int, ...]]] = [
    *(({"method": "none", "lr": lr}, SEEDS) for lr in (0.05, 0.1)),
    *(
        ({"method": "afpkd", "mu": mu, "gamma": gamma, "lr": lr}, seeds)
        for mu, gamma, lr, seeds in (
            (5.0, 0.6, 0.05, (0,)),  # as it was
            (5.0, 3.0, 0.05, (0,)),
            (5.0, 15.0, 0.05, (0, 1)),
            (20.0, 3.0, 0.05, (0,)),
            (20.0, 15.0, 0.05, SEEDS),
            (20.0, 60.0, 0.05, (1,)),
            (60.0, 15.0, 0.05, (1,)),
            (60.0, 60.0, 0.05, (1,)),
            (20.0, 15.0, 0.1, SEEDS),
        )
    ),
]
"""What was tried, with which seeds: the widest choice with one, what seemed best with all."""


def main() -> None:
    """Train the missing trials, print all."""
    known = [(row["options"], row["seed"]) for row in rows.read(RESULT)]
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            todo = [trial for trial, seeds in TRIALS if seed in seeds and (trial, seed) not in known]
            rows.append(RESULT, trained(todo, seed, Path(folder)))
    sys.stdout.write(table(rows.read(RESULT)))


def trained(trials: list[Json], seed: int, folder: Path, recipe: str = "default", heldout: int = HELDOUT) -> list[Json]:
    """Train these of one seed side by side; a row each."""
    if not trials:
        return []
    file = folder / "trial.toml"
    file.write_text(f'extends = "{recipe}"\n[data]\nheldout = {heldout}\n')
    runs = [run_of(f"trial{number}", trial, seed, folder, str(file)) for number, trial in enumerate(trials)]
    found = train_side_by_side([Workspace(run, "student") for run in runs])
    return [
        {**rows.trial_of(trial, seed=seed, epochs=run.recipe.distill.epochs, fitted=fitted), "heldout": heldout}
        for trial, run, (_, _, fitted) in zip(trials, runs, found, strict=True)
    ]


def table(found: list[Json]) -> str:
    """Markdown: a trial a line, its held-out top-1 after the last epoch a seed."""
    lines = ["| trial | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " |", "|---|" + "---:|" * len(SEEDS)]
    for trial, _ in TRIALS:
        scores = {row["seed"]: f"{row['heldout_top1']:.2f}" for row in found if row["options"] == trial}
        told = " ".join(f"{key}={value}" for key, value in trial.items())
        lines.append(f"| {told} | " + " | ".join(scores.get(seed, "") for seed in SEEDS) + " |")
    return "\n".join(lines) + "\n"
