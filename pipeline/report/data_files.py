"""The report for programs: CSV, one row a row of the profiles, nothing rounded; JSON, what was concluded from them."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence

from afpkd.record import Json
from pipeline.report.candidates import Candidate, Key, energy_mj
from pipeline.report.findings import speedups
from pipeline.report.macs_ranks import misled
from pipeline.report.page import Page
from pipeline.report.records import Records
from pipeline.report.tradeoff import Budget, Standing, standing_by_key

SCHEMA = "afpkd.report/1"

_LATENCY = tuple(f"{name}{end}" for name in ("p50", "p90", "p99") for end in ("", "_lo", "_hi"))
_CSV_COLUMNS = (
    *("recipe", "data", "role", "arch", "method", "device", "precision", "mode", "scenario", "batch", "threads", "n"),
    *(f"latency_{name}_ms" for name in _LATENCY),
    *("throughput_images_per_s", "energy_mj_per_image"),
    *("top1_percent", "top1_low_percent", "top1_high_percent", "ap_percent"),
    *("fps", "missed_percent", "sustainable_fps", "num_runs", "spread_percent"),
    *("num_params", "macs", "size_bytes", "peak_memory_bytes", "trade_off", "verdict", "reasons", "preset"),
    *("runtime", "runtime_version", "clocks", "power_mode", "seed", "config_digest", "finished_at"),
)


def csv_of(runs: Sequence[Records], candidates: Sequence[Candidate], standing: Sequence[Standing]) -> str:
    """Write every row of every profile; units are in the columns' names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    places = standing_by_key(candidates, standing)
    for run in runs:
        for profile in run.profiles:
            writer.writerows(_csv_row(run, profile, row, places) for row in profile["rows"])
    return text.getvalue()


def json_of(
    page: Page, runs: Sequence[Records], candidates: Sequence[Candidate], standing: Sequence[Standing], budget: Budget
) -> Json:
    """Give what was concluded: what to take and why, each candidate's standing, speed-ups, what is missing."""
    return {
        "schema": SCHEMA,
        "recipes": [run.name for run in runs],
        "budget": budget._asdict(),
        "recommended": [_recommended(found.data, found.choice, found.why) for found in page.advice],
        "candidates": [
            {**_plain(candidate), "trade_off": str(found.place), "beaten_by": _key(found.by)}
            for candidate, found in zip(candidates, standing, strict=True)
        ],
        "speedups": [
            {"recipe": run.name, **speed._asdict(), "ratio": speed.ratio._asdict()}
            for run in runs
            for speed in speedups(run)
        ],
        "macs_mislead": [
            {"slower": _key(pair.lighter), "than": _key(pair.heavier), "ratio": pair.slowdown}
            for pair in misled(candidates)
        ],
        "missing": [gap._asdict() for gap in page.missing],
    }


def _recommended(data: str, choice: Candidate | None, why: Sequence[str]) -> Json:
    return {"data": data, "file": _key(choice), "why": list(why)}


def _key(candidate: Candidate | None) -> Json | None:
    if candidate is None:
        return None
    return dict(zip(("recipe", "device", "role", "precision"), candidate.key, strict=True))


def _plain(candidate: Candidate) -> Json:
    plain = dataclasses.asdict(candidate)
    del plain["of"]  # words for people
    for name in ("accuracy", "p50_ms", "p90_ms"):
        estimate = getattr(candidate, name)
        plain[name] = estimate._asdict() if estimate else None
    return plain


def _csv_row(run: Records, profile: Json, row: Json, places: Mapping[Key, Standing]) -> Json:
    record = run.records.get(profile["role"], {})
    found = places.get((run.name, profile["device"], profile["role"], profile["precision"]))
    interval = profile.get("top1_interval") if row["top1"] == profile["top1"] else None  # it is the quoted mode's
    low, high = interval or (None, None)
    flat = {
        "recipe": run.name,
        **{f"latency_{name}_ms": row["latency_ms"].get(name) for name in _LATENCY},
        "throughput_images_per_s": row["throughput_ips"],
        "energy_mj_per_image": energy_mj(row),
        "top1_percent": row["top1"],
        "top1_low_percent": low,
        "top1_high_percent": high,
        "ap_percent": row.get("ap"),
        "trade_off": str(found.place) if found and row is profile["rows"][0] else None,
        "reasons": "; ".join(row["reasons"]),
        "runtime": profile["runtime"]["name"],
        "runtime_version": profile["runtime"]["version"],
    }
    sources = {**record, **profile, **row, **flat}
    return {column: sources.get(column) for column in _CSV_COLUMNS}
