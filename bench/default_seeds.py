"""The default recipe with three seeds: is the distilled student better than the undistilled one? (about 10 minutes)"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from afpkd.record import Json
from bench.rows import append, row_of
from pipeline.graph import run_goals

SEEDS = (0, 1, 2)
NAMES = {"none": "undistilled", "afpkd": "distilled (`afpkd`)"}


def main() -> None:
    """Train each seed in a scratch folder, append its rows, print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            recipe = Path(folder) / f"seed{seed}.toml"
            recipe.write_text(f'extends = "default"\nseed = {seed}\n')
            (run,) = run_goals(
                ["distill"], recipes=[str(recipe)], runs=Path(folder) / "runs", devices=["local"], train_device="cpu"
            )
            finished = [row_of(run, role) for role in ("undistilled", "student")]
            append("default", finished)  # at once: a later failure loses nothing
            rows += finished
    sys.stdout.write(table(rows))


def table(rows: list[Json]) -> str:
    """Markdown: test top-1 of the selected epoch in percent, a seed a column, and mean ± standard deviation."""
    lines = [
        "| student | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean ± std |",
        "|---|" + "---:|" * (len(SEEDS) + 1),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        top1 = [row["test_top1_selected"] for row in rows if row["method"] == method]
        mean, std = statistics.mean(top1), statistics.stdev(top1)
        cells = [NAMES.get(method, method), *(f"{value:.2f}" for value in top1), f"{mean:.2f} ± {std:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
