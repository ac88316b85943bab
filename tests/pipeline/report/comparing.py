"""What tests of comparisons change in a run, and how they read what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afpkd.record import read_record, write_record
from pipeline.report.regression import Change, compare_runs
from tests.pipeline.report.making import with_intervals


def change_profile(folder: Path, name: str = "student-fp32", **changes: Any) -> None:
    path = folder / "profiles" / "local" / f"{name}.json"
    record = read_record(path)
    for key in ("p50", "p90"):
        if key in changes:
            record["latency_ms"][key] = changes.pop(key)
    num_runs = changes.pop("num_runs", 3)
    write_record(path, with_intervals(record | changes, num_runs=num_runs))


def compared(runs: tuple[Path, Path], *, threshold: float = 5.0, max_drop: float = 1.0) -> list[Change]:
    return compare_runs(*runs, threshold=threshold, max_drop=max_drop)


def one(changes: list[Change], quantity: str, name: str = "student fp32 on local") -> Change:
    (found,) = [change for change in changes if (change.name, change.quantity) == (name, quantity)]
    return found
