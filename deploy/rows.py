"""What the agent answered -> rows of a record: a scenario, its numbers, their verdict. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json
from deploy import energy, series, statistics
from deploy.found import average_precision_of
from deploy.runs import QUANTITIES, Run, facts_of_run, quantities_ms
from deploy.verdict import Facts, Verdict, verdict

SPREAD_WARN = 5.0  # percent between processes (protocol 4.7)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a row says beside its numbers."""

    device: str
    role: str | None
    precision: str | None
    runtime: str
    threads: int
    """Asked for; 0: the runtime's default."""
    macs: int | None
    num_params: int | None
    size_bytes: int
    labels: NDArray[np.int64] | None
    """Of the evaluation images; None where there are none."""
    truth: Path | None = None
    """Of a detector: the COCO document of what is on the evaluation images."""
    batch: int = 1


def rows_of(about: About, runs: Sequence[Run], remarks: Sequence[str]) -> list[Json]:
    """Give the row of the single stream, over all `runs` of a file in a mode, and those of the first's scenarios."""
    single = _single_stream(about, runs, remarks)
    if not runs[0].passed:
        return [single]
    return [single, *_periodic(about, runs[0], single), *_offline(runs[0], single)]


def _single_stream(about: About, runs: Sequence[Run], remarks: Sequence[str]) -> Json:
    tables = [statistics.latency_ms(run.samples) for run in runs]
    medians = [table["p50"] for table in tables if table["p50"] is not None]
    spread = statistics.spread_percent(medians) if len(medians) > 1 else None
    judged, reasons = _over_all(about, runs, remarks)
    if spread is not None and spread > SPREAD_WARN:
        reasons.append(f"spread: the medians of {len(runs)} processes lie {spread:.1f} % apart")
        judged = "WARN" if judged == "VALID" else judged
    throughputs = [statistics.throughput_ips(run.samples, about.batch) for run in runs]
    return {
        **_head(about, runs[0]),
        "scenario": "single_stream",
        "batch": about.batch,
        "n": sum(len(run.samples) for run in runs),
        "latency_ms": statistics.of_runs(tables),
        "throughput_ips": None if None in throughputs else float(np.median([ips for ips in throughputs if ips])),
        "quantities_ms": quantities_ms(runs[0]),
        "energy": energy.energy(runs[0].state, len(runs[0].samples) * about.batch),
        "num_runs": len(runs),
        "spread_percent": spread,
        "fps": None,
        "missed_percent": None,
        "sustainable_fps": None,
        "verdict": judged,
        "reasons": reasons,
    }


def _head(about: About, run: Run) -> Json:
    logits = run.arrays.get("logits")
    return {
        "device": about.device,
        "role": about.role,
        "precision": about.precision,
        "mode": run.answer["mode"],
        "threads": run.answer["runtime"]["threads"],
        "clocks": run.answer["clocks"],
        "power_mode": run.answer["machine"].get("before", {}).get("power_mode"),
        "macs": about.macs,
        "num_params": about.num_params,
        "size_bytes": about.size_bytes,
        "top1": _top1(logits, about.labels),
        **({} if about.truth is None else average_precision_of(run.arrays, about.truth)),
    }


def _top1(logits: NDArray[Any] | None, labels: NDArray[Any] | None) -> float | None:
    if logits is None or labels is None:
        return None
    return statistics.top1_percent(logits.argmax(axis=1), labels)


def _periodic(about: About, run: Run, single: Json) -> list[Json]:
    """A row a rate: latency from when a frame was due."""
    found = run.answer["timing"].get("periodic")
    rows = []
    for rate in found["rates"] if found else []:
        samples = run.arrays[f"periodic_{rate['fps']:g}_ns"]
        missed = 100 * rate["missed"] / len(samples)
        told = f"deadlines missed: {missed:.1f} % of {len(samples)} frames took longer than {1e3 / rate['fps']:.1f} ms"
        own = [told] if missed > 100 * found["most_missed"] else []
        rows.append(
            {
                **_other(single, samples, about.batch, own),
                "scenario": "periodic",
                "throughput_ips": None,
                "fps": rate["fps"],
                "missed_percent": missed,
                "sustainable_fps": found["sustainable_fps"],
            }
        )
    return rows


def _offline(run: Run, single: Json) -> list[Json]:
    """A row a batch: what keeping the runtime busy gives, latency being that of the whole batch."""
    rows = []
    for found in run.answer["timing"].get("offline", ()):
        batch, checks = found["batch"], [found["golden"]["ok"]]
        row = _other(single, run.arrays[f"offline_{batch}_ns"], batch, [], golden=checks, steady=found["steady"])
        rows.append({**row, "scenario": "offline"})
    return rows


def _other(
    single: Json,
    samples: NDArray[np.int64],
    batch: int,
    own: list[str],
    *,
    golden: Sequence[bool] = (True,),
    steady: bool | None = None,
) -> Json:
    """A scenario's row from its samples; what holds for the single stream's conditions holds for it.

    golden, steady: of a runtime and a warm-up of its own; by default those were the single stream's.
    """
    drift, wander = series.drift(samples), series.wander_percent(samples)
    facts = Facts(
        n=len(samples),
        min_count=0,
        steady=steady,
        drift=drift,
        wander_percent=wander,
        golden=golden,
        foreign_cpus=None,
        num_cpus=1,
        num_inputs=None,
        remarks=own,
    )
    judged, reasons = verdict(facts)
    its_own = _OF_THE_STREAM if steady is None else (*_OF_THE_STREAM, "not steady")
    kept = [reason for reason in single["reasons"] if not reason.startswith(its_own)]
    return {
        **single,
        "batch": batch,
        "n": len(samples),
        "latency_ms": statistics.latency_ms(samples),
        "throughput_ips": statistics.throughput_ips(samples, batch),
        "quantities_ms": dict.fromkeys(QUANTITIES),
        "energy": None,
        "num_runs": 1,
        "spread_percent": None,
        "verdict": _worst([judged, "WARN" if kept else "VALID"]),
        "reasons": [*reasons, *kept],
    }


_OF_THE_STREAM = ("drift", "unsteady", "dependent", "too few", "spread", "stalled")
"""Reasons that speak of the single stream's own samples."""


def _over_all(about: About, runs: Sequence[Run], remarks: Sequence[str]) -> tuple[Verdict, list[str]]:
    """Judge every run; all reasons, each once, with the processes it was seen in where that was not all of them."""
    judged = [verdict(facts_of_run(run, runtime=about.runtime, threads=about.threads)) for run in runs]
    seen: dict[str, list[int]] = {}
    for number, (_, reasons) in enumerate(judged, start=1):
        for reason in reasons:
            seen.setdefault(reason, []).append(number)
    told = [
        reason if len(numbers) == len(runs) else f"{reason} (process {', '.join(map(str, numbers))} of {len(runs)})"
        for reason, numbers in seen.items()
    ]
    worst = _worst([found for found, _ in judged])
    return (_worst([worst, "WARN"]) if remarks else worst), [*told, *remarks]


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("INVALID", "WARN", "VALID")
    return next(found for found in order if found in verdicts)
