"""What the agent answered -> rows of a record: a scenario, its numbers, their verdict. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json
from deploy import energy, statistics
from deploy.found import average_precision_of
from deploy.runs import QUANTITIES, Run, facts_of_run, facts_of_scenario, quantities_ms
from deploy.verdict import Facts, Verdict, verdict

SPREAD_WARN = 5.0  # percent between processes (protocol 4.7)
ONE_PROCESS = "one process: the next may lie outside of this one's interval"


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
    alone = runs[0].preset.repeats == 1 and len(runs[0].samples) > 0
    single = _single_stream(about, runs, [*remarks, ONE_PROCESS] if alone else remarks)
    if not runs[0].passed:
        return [single]
    facts = facts_of_run(runs[0], runtime=about.runtime, threads=about.threads)
    facts = replace(facts, remarks=[*remarks, ONE_PROCESS])
    return [single, *_periodic(about, runs[0], single, facts), *_offline(runs[0], single, facts)]


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


def _periodic(about: About, run: Run, single: Json, facts: Facts) -> list[Json]:
    """A row a rate: latency from when a frame was due."""
    found = run.answer["timing"].get("periodic")
    rows = []
    for rate in found["rates"] if found else []:
        name = f"periodic_{rate['fps']:g}"
        samples = run.arrays[f"{name}_ns"]
        missed = 100 * rate["missed"] / len(samples)
        told = f"deadlines missed: {missed:.1f} % of {len(samples)} frames took longer than {1e3 / rate['fps']:.1f} ms"
        remarks = [told, *facts.remarks] if missed > 100 * found["most_missed"] else facts.remarks
        its = facts_of_scenario(facts, run, name, golden=[True], steady=None, foreign_cpus=rate.get("foreign_cpus"))
        rows.append(
            {
                **_other(single, samples, about.batch, replace(its, remarks=remarks)),
                "scenario": "periodic",
                "throughput_ips": None,
                "fps": rate["fps"],
                "missed_percent": missed,
                "sustainable_fps": found["sustainable_fps"],
            }
        )
    return rows


def _offline(run: Run, single: Json, facts: Facts) -> list[Json]:
    """A row a batch: what keeping the runtime busy gives, latency being that of the whole batch."""
    rows = []
    for found in run.answer["timing"].get("offline", ()):
        batch, golden = found["batch"], [found["golden"] is None or found["golden"]["ok"]]
        name, foreign = f"offline_{batch}", found.get("foreign_cpus")
        its = facts_of_scenario(facts, run, name, golden=golden, steady=found["steady"], foreign_cpus=foreign)
        its = replace(its, failed=found.get("failed") and f"batch {batch}: {found['failed']}")
        rows.append({**_other(single, run.arrays[f"{name}_ns"], batch, its), "scenario": "offline"})
    return rows


def _other(single: Json, samples: NDArray[np.int64], batch: int, facts: Facts) -> Json:
    """A scenario's row from its samples and what was seen while they were taken."""
    judged, reasons = verdict(facts)
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
        "verdict": judged,
        "reasons": reasons,
    }


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
