"""One finished training = one row of results/NAME.jsonl: `python -m bench.rows NAME RUN_FOLDER [VARIANT]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import filelock

from afpkd.record import Json, read_record, write_text

RESULTS = Path(__file__).parent / "results"


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
        "commit": record["git_commit"],
        "config_digest": record["config_digest"],
        "finished_at": record["finished_at"],
    }


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


def table(rows: list[Json]) -> str:
    """Markdown: one line a run, accuracies in percent."""
    lines = [
        "| pair | method | seed | epochs | test top-1, selected epoch | last epoch | held-out | hours |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        metrics = [f"{row[key]:.2f}" for key in ("test_top1_selected", "test_top1_last", "heldout_top1")]
        cells = [row["pair"], f"`{row['method']}`", str(row["seed"]), str(row["epochs"]), *metrics]
        lines.append(f"| {' | '.join(cells)} | {row['wall_s'] / 3600:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    result, folder, *rest = sys.argv[1:]
    append(result, [row_of(Path(folder), role, *rest) for role in ("undistilled", "student")])
