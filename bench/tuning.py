"""Choose each method's weight for the CPU protocol: short proxies, seed 0, judged on the held-out split alone.

`python -m bench.tuning kd dkd …` trains the trials of these methods side by side; the test set is never read. Rows go
to results/cifar100_tuning.jsonl; without arguments the table is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from afpkd.record import Json
from bench import rows
from bench.accuracy import run_of, train_side_by_side
from bench.command import run
from bench.variants import METHODS
from pipeline.workspace import Run, Workspace

RESULT = "cifar100_tuning"
EPOCHS = 2
FOLDER = Path("runs/bench-tuning")

TRIALS: dict[str, list[Json]] = {
    "none": [{}],
    "kd": [{"kd_weight": 0.9}, {"kd_weight": 2.7}, {"kd_weight": 8.1}, {"kd_weight": 1.5}, {"kd_weight": 4.5}],
    "dkd": [{"beta": 2.0}, {"beta": 6.0}, {"beta": 18.0}, {"beta": 3.5}, {"beta": 10.0}],
    "catkd": [{"beta": 0.7}, {"beta": 5.0}, {"beta": 35.0}, {"beta": 2.0}, {"beta": 12.0}],
    "afpkd": [
        {"gamma": gamma, "mu": mu, "mask": mask, "position_weight": weight, "local_branch": local}
        for gamma, mu, mask, weight, local in (
            (0.0, 20.0, "constant", False, True),
            (0.0, 20.0, "prompts", False, True),
            (6.0, 20.0, "constant", False, True),
            (6.0, 20.0, "prompts", False, True),
            (20.0, 60.0, "prompts", False, True),
            (60.0, 20.0, "prompts", False, True),
            (60.0, 60.0, "prompts", False, True),
            (20.0, 60.0, "prompts", False, False),
            (20.0, 200.0, "prompts", True, False),
            (20.0, 600.0, "prompts", True, False),
            (20.0, 2000.0, "prompts", True, False),
            (0.0, 600.0, "prompts", True, False),
            (60.0, 600.0, "prompts", True, False),
            (20.0, 600.0, "constant", False, False),
        )
    ],
    "freekd": [{"mu": mu, "prompts": METHODS["freekd"]["prompts"]} for mu in (5.0, 20.0, 60.0, 200.0, 600.0, 2e3, 6e3)],
    "reviewkd": [{"gamma": 0.6}, {"gamma": 2.0}, {"gamma": 6.0}, {"gamma": 20.0}, {"gamma": 60.0}, {"gamma": 200.0}],
}


def main(methods: list[str]) -> None:
    """Train the trials that have no row yet; print all rows."""
    known = [(row["method"], row["options"]) for row in rows.read(RESULT)]
    todo = [(method, trial) for method in methods for trial in TRIALS[method] if (method, trial) not in known]
    if todo:
        works = [Workspace(_run(method, trial), "student") for method, trial in todo]
        for (method, trial), (_, _, fitted) in zip(todo, train_side_by_side(works), strict=True):
            found = rows.trial_of(trial, seed=0, epochs=EPOCHS, fitted=fitted)
            rows.append(RESULT, [{"method": method, **found}])
    for row in rows.read(RESULT):
        sys.stdout.write(f"{row['method']:10} {row['options']!s:40} held-out {row['heldout_top1']:.2f}\n")


def _run(method: str, trial: Json) -> Run:
    name = "-".join([method, *(f"{key}{value}" for key, value in trial.items() if key != "prompts")])
    return run_of(name, {"method": method, "epochs": EPOCHS, **trial}, 0, FOLDER)


if __name__ == "__main__":
    run(main)
