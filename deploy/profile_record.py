"""What runs of a file become on disk: a record, and beside it every raw sample, compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json, atomic_path, sha256_of, write_record
from deploy import statistics
from deploy.agent import PROTOCOL
from deploy.presets import Preset
from deploy.runs import Run, course

SCHEMA = "afpkd.profile/1"


def write_profile(record: Json, measured: dict[str, list[Run]], out: Path) -> Json:
    """Write `record` to `out`, the arrays of its runs by mode beside it (.npz), the record last; give it completed."""
    samples_path = out.with_suffix(".npz")
    with atomic_path(samples_path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **_samples(measured))
    completed = {
        **record,
        "outputs": {samples_path.name: sha256_of(samples_path)},
        "finished_at": _finished_at(measured).isoformat(timespec="seconds"),
    }
    write_record(out, completed)
    return completed


def _finished_at(measured: dict[str, list[Run]]) -> datetime:
    """When the last process ended, which may be long before its result was fetched."""
    ends = [run.answer["finished_at_s"] for runs in measured.values() for run in runs if "finished_at_s" in run.answer]
    return datetime.fromtimestamp(max(ends), UTC) if ends else datetime.now(UTC)


def facts_of(runs: Sequence[Run], preset: Preset, threads: int) -> Json:
    """What a record says of how its first row was made: the first process's facts; every process's under `runs`."""
    answer, courses = runs[0].answer, [course(run) for run in runs]
    return {
        "peak_memory_bytes": answer["memory"]["peak_bytes"],
        "memory": {**answer["memory"], "includes": _memory_includes(answer["runtime"])},
        "runtime": {**answer["runtime"], "threads_asked": threads},
        "protocol": _protocol(preset, len(runs)),
        "timing": {**answer["timing"], **courses[0]},
        "golden": {"before": None, "after": None, **answer["golden"]},
        "clocks": answer["clocks"],
        "clock": answer["clock"],
        "cross_check": answer.get("cross_check"),
        "runs": [
            {
                "n": len(run.samples),
                "latency_ms": statistics.latency_ms(run.samples),
                "cold_load_ms": run.answer["timing"]["cold_load_ms"],
                "first_inference_ms": run.answer["timing"]["first_inference_ms"],
                **its_course,
            }
            for run, its_course in zip(runs, courses, strict=True)
        ],
    }


def _samples(measured: dict[str, list[Run]]) -> dict[str, NDArray[Any]]:
    """The quoted mode's arrays of the first process by their own names; others' with `_<mode>`, `_<number>` behind."""
    named: dict[str, NDArray[Any]] = {}
    for place, (mode, runs) in enumerate(measured.items()):
        for number, run in enumerate(runs, start=1):
            behind = f"{f'_{mode}' if place else ''}{f'_{number}' if number > 1 else ''}"
            named |= {f"{name}{behind}": array for name, array in run.arrays.items()}
    return named


def _memory_includes(runtime: Json) -> str:
    if "GPU" in runtime.get("providers", ()):
        return "the process on the host: interpreter, numpy, runtime, 64 prepared inputs; not what is on the GPU"
    return "the whole process: interpreter, numpy, runtime, weights, activations, 64 prepared inputs"


def _protocol(preset: Preset, num_runs: int) -> Json:
    """The rules the row was made by: rows of different rules are never drawn in one series."""
    several = f"{num_runs} fresh ones, files taking turns; the median process, the envelope of their intervals"
    return {
        "version": 1,
        "agent": PROTOCOL,
        "quantity": "t_e2e: input in host memory to output in host memory, one call after the other",
        "clock": "time.perf_counter_ns",
        "percentiles": "nearest rank; null below the count of MLPerf's early-stopping rule",
        "intervals": "95 %, distribution-free, by ranks; the moving-block bootstrap's where calls depend on each other",
        "bounds": "99 %, MLPerf's early-stopping estimate",
        "processes": several if num_runs > 1 else "a single fresh one, and its interval",
        "periodic": "latency from when a frame was due; deadline: when the next one is",
        "outliers": "none removed",
        "preset": asdict(preset),
    }
