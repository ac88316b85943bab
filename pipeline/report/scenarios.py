"""The rows of a profile beyond its headline: other scenarios, batches and modes."""

from __future__ import annotations

from typing import Any

from pipeline.report.records import Records
from pipeline.report.tables import Table
from pipeline.report.wording import ROLES, count, milliseconds, percent


def scenarios_table(run: Records) -> Table:
    """Frames that arrive on time, batches, other modes: what one call after the other hides."""
    rows = [
        [
            *(ROLES[profile["role"]], profile["precision"], profile["device"], _words(row)),
            *(milliseconds(row["latency_ms"].get(key)) for key in ("p50", "p90", "p99")),
            *(count(row.get("throughput_ips"), 1), percent(_missed(row)), row["verdict"]),
        ]
        for profile in run.profiles
        for row in profile["rows"][1:]
    ]
    columns = ["Model", "Precision", "Device", "Scenario", "p50 (ms)", "p90 (ms)", "p99 (ms)", "Images/s", "Too late"]
    notes = [
        "Periodic: frames arrive at a fixed rate, each timed from when it was due; “too late” are those not done when "
        "the next was due. Offline: all images at once, in batches.",
    ]
    return Table("Other scenarios", [*columns, "Verdict"], rows, frozenset({4, 5, 6, 7, 8}), notes)


def _words(row: dict[str, Any]) -> str:
    rate = f", {row['fps']:g} FPS" if row.get("fps") else ""
    batch = f", batch {row['batch']}" if row["batch"] != 1 else ""
    mode = f", mode {row['mode']}" if row.get("mode", "default") != "default" else ""
    return f"{row['scenario'].replace('_', ' ')}{rate}{batch}{mode}"


def _missed(row: dict[str, Any]) -> float | None:
    missed: float | None = row.get("miss_percent")
    return missed
