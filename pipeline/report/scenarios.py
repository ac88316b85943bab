"""The rows of a profile beyond its headline: other scenarios, batches, modes; and what the energy figures rest on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report.conditions import clock_words
from pipeline.report.records import Records
from pipeline.report.tables import Table
from pipeline.report.wording import ROLES, count, milliseconds, percent


def scenarios_table(run: Records) -> Table:
    """Frames that arrive on time, batches, other modes: what one call after the other hides."""
    rows = [
        [
            *(ROLES[profile["role"]], profile["precision"], profile["device"], _words(row, profile)),
            *(milliseconds(row["latency_ms"].get(key)) for key in ("p50", "p90", "p99")),
            *(count(row.get("throughput_ips"), 1), percent(row.get("missed_percent"))),
            *(count(row.get("sustainable_fps"), 1), row["verdict"]),
        ]
        for profile in run.profiles
        for row in profile["rows"][1:]
    ]
    columns = ["Model", "Precision", "Device", "Scenario", "p50 (ms)", "p90 (ms)", "p99 (ms)", "Images/s", "Too late"]
    notes = [
        "Periodic: frames arrive at a fixed rate, each timed from when it was due; too late: not done when the next is "
        "due; sustainable: the highest rate at which 1 % at most are too late. Offline: latency is that of a batch.",
    ]
    title = "Other scenarios"
    return Table(title, [*columns, "Sustainable FPS", "Verdict"], rows, frozenset({4, 5, 6, 7, 8, 9}), notes)


def energy_notes(runs: Sequence[Records]) -> list[str]:
    """Say how energy was measured and what it does not see, once for each way; and why it is missing."""
    notes: dict[str, None] = {}
    for found in (p["energy"] for run in runs for p in run.profiles if p.get("energy")):
        if found.get("j_per_inference") is None:
            notes[f"Energy is “-” where it could not be measured: {found.get('why_null')}."] = None
            continue
        rails = ", ".join(found["rails"])
        notes[
            f"Energy an image, net of the idle machine: {found['method']} ({rails}), {found['rate_hz']:.0f} readings a "
            f"second. Not in it: {'; '.join(found['blind_spots'])}."
        ] = None
    return list(notes)


def _words(row: dict[str, Any], quoted: dict[str, Any]) -> str:
    """What is other than in the row that is quoted."""
    rate = f", {row['fps']:g} FPS" if row.get("fps") else ""
    batch = f", batch {row['batch']}" if row["batch"] != 1 else ""
    mode = f", mode {row['mode']}" if row.get("mode", "default") != "default" else ""
    clocks = f", {clock_words(row)}" if clock_words(row) != clock_words(quoted) else ""
    return f"{row['scenario'].replace('_', ' ')}{rate}{batch}{mode}{clocks}"
