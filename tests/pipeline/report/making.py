"""Candidates and whole runs for the report's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from afpkd.record import Json, write_record
from pipeline.report.candidates import Candidate, Estimate
from tests.pipeline.conftest import HandMadeRun, hand_made_run, profile_record


def candidate(top1: float, p50: float, *, spread: float = 0.01, right: float = 0.1, **changes: Any) -> Candidate:
    """A distilled fp32 file on `local`; its intervals reach `right` points and the share `spread` to both sides."""
    facts: dict[str, Any] = {
        **{
            "recipe": "tiny",
            "of": "",
            "data": "shapes",
            "device": "local",
            "role": "student",
            "arch": "net",
            "method": "afpkd",
        },
        **{"precision": "fp32", "macs": 1_000_000, "num_params": 1000, "size_bytes": 4000, "energy_mj": None},
        "metric": "top1",
        "accuracy": Estimate(top1, top1 - right, top1 + right),
        "p50_ms": Estimate(p50, p50 * (1 - spread), p50 * (1 + spread)),
        "p90_ms": Estimate(1.5 * p50, 1.5 * p50 * (1 - spread), 1.5 * p50 * (1 + spread)),
        **{"conditions": {"threads": "2", "clocks": "as-is"}, "verdict": "VALID", "reasons": ()},
    }
    return Candidate(**{**facts, **changes})


def with_intervals(profile: Json, *, right: float = 0.5, num_runs: int = 3) -> Json:
    """The record as the profile stage writes it: each percentile with its 95 % interval of 1 % to both sides."""
    profile["num_runs"] = num_runs
    for row in (profile, *profile["rows"]):
        latency = row["latency_ms"]
        for name in ("p50", "p90", "p99"):
            value = latency.get(name)
            latency[f"{name}_lo"] = None if value is None else 0.99 * value
            latency[f"{name}_hi"] = None if value is None else 1.01 * value
    profile["top1_interval"] = [profile["top1"] - right, profile["top1"] + right]
    return profile


def whole_run(
    folder: Path, *, devices: dict[str, float], seed: int = 0, precisions: tuple[str, ...] = ("fp32", "int8")
) -> HandMadeRun:
    """A run with every role at every precision on each device; devices: name -> how many times slower than `local`."""
    run = hand_made_run(folder)
    random = np.random.default_rng(seed)
    for path in folder.glob("profiles/*/*.json"):
        path.unlink()
    for device, slower in devices.items():
        for role in ("teacher", "student", "undistilled"):
            for precision in precisions:
                record = profile_record(role) | {"device": device, "precision": precision}
                factor = slower * float(random.uniform(0.8, 1.2))
                lost = 0.0 if precision == "fp32" else 0.6
                for row in (record, record["rows"][0]):
                    row["latency_ms"] = {"p50": row["latency_ms"]["p50"] * factor, "p90": 2 * factor, "p99": None}
                    row |= {"device": device, "precision": precision, "top1": row["top1"] - lost}
                write_record(folder / "profiles" / device / f"{role}-{precision}.json", with_intervals(record))
    return run


def put_losses(made: HandMadeRun) -> None:
    """Epochs as the training loop writes them; a term has an odd name."""
    for role, least in (("teacher", 1.0), ("student", 0.5), ("undistilled", 0.75)):
        path = made.folder / role / "metrics.jsonl"
        epochs = [json.loads(line) for line in path.read_text().splitlines()]
        for epoch, factor in zip(epochs, (4, 2, 1), strict=True):
            odd = {"frequency <b>": 0.125 * factor} if role == "student" else {}
            epoch["losses"] = {"task": least * factor, **odd}
        path.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
