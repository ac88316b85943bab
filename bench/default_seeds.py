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


def main() -> None:
    """Train each seed in a scratch folder, append its rows, print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            recipe = Path(folder) / f"seed{seed}.toml"
            recipe.write_text(f'extends = "default"\nseed = {seed}\n')
            run = run_goals(
                ["distill"], recipe=str(recipe), runs=Path(folder) / "runs", devices=["local"], train_device="cpu"
            )
            rows += [row_of(run, role) for role in ("undistilled", "student")]
    append("default", rows)
    sys.stdout.write(table(rows))


def table(rows: list[Json]) -> str:
    """Test top-1 of the selected epoch a seed, and mean ± standard deviation."""
    lines = [f"{'method':<8}" + "".join(f"  seed {seed}" for seed in SEEDS) + "   mean ± std"]
    for method in dict.fromkeys(row["method"] for row in rows):
        top1 = [row["test_top1_selected"] for row in rows if row["method"] == method]
        numbers = "".join(f"{value:>8.2f}" for value in top1)
        lines.append(f"{method:<8}{numbers}   {statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f}")
    return "\n".join(lines) + "\n"
