"""The stage `profile`: a bundle's files on a device -> a record each, with a verdict, and its raw samples beside it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json, UserError, atomic_path, provenance, sha256_of, write_record
from deploy import statistics
from deploy.agent import PROTOCOL
from deploy.agent.measuring import SINGLE_STREAM
from deploy.devices import find_device, open_target, with_runtime
from deploy.jobs import Progress, run_job
from deploy.lock import only_measurement
from deploy.presets import Preset, find_preset
from deploy.profile_job import ProfileJob
from deploy.rows import Run, course, rows_of
from deploy.target import Target

SCHEMA = "afpkd.profile/1"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of a bundle, and where its record goes (raw samples beside it, with suffix .npz)."""

    bundle_dir: Path
    precision: str
    out: Path


def profile_files(
    wanted: Sequence[Wanted],
    *,
    device: str,
    preset: str,
    threads: int,
    recipe: str,
    config_digest: str,
    scenarios: Sequence[str] = (SINGLE_STREAM,),
    progress: Progress = lambda text, done, total: None,
) -> list[Json]:
    """Measure the files on a device, in the preset's number of fresh processes each, taking turns; write their records.

    Taking turns (A, B, A, B …, in another order each round): what changes about the machine meanwhile meets them all.
    `threads` 0 is the runtime's own default. A record comes last, atomically: it exists exactly where all is done.
    A failed golden check is a result (verdict INVALID, no latency), not an error. UserError: unknown device, preset or
    precision, broken bundle, or an agent that failed.
    """
    if threads < 0:
        raise UserError(f"threads = {threads}: expected 0 (the runtime's default) or more")
    found, rules = with_runtime(find_device(device)), find_preset(preset)
    jobs = [ProfileJob(one.bundle_dir, found, one.precision, rules, threads, tuple(scenarios)) for one in wanted]
    for job, one in zip(jobs, wanted, strict=True):
        job.files()  # a mistake is told before anything is measured
        one.out.unlink(missing_ok=True)  # an old record must not vouch for new samples
    measured = _measured(jobs, progress)
    identity = {"recipe": recipe, "config_digest": config_digest}
    return [_written(job, runs, one.out, identity) for job, runs, one in zip(jobs, measured, wanted, strict=True)]


def profile_bundle(bundle_dir: Path, *, precision: str, out: Path, **how: Any) -> Json:
    """Measure one file alone: see `profile_files`."""
    return profile_files([Wanted(bundle_dir, precision, out)], **how)[0]


def _measured(jobs: Sequence[ProfileJob], progress: Progress) -> list[dict[str, list[Run]]]:
    """Measure each file, mode by mode, in turns; give each file's runs by mode, the mode to quote first.

    That is the runtime's default where it passes the golden check, else the mode that does.
    """
    device = jobs[0].device
    measured: list[dict[str, list[Run]]] = [{} for _ in jobs]
    with only_measurement(device.machine), open_target(device) as target, TemporaryDirectory() as folder:
        for turn, number in _turns(len(jobs), jobs[0].preset.repeats):
            job, runs = jobs[number], measured[number]
            for mode in job.modes():
                preset = _preset(job, runs, mode)
                run = _run(target, job, mode, preset, turn, Path(folder) / "samples.npz", progress)
                runs.setdefault(mode, []).append(run)
    return [dict(sorted(runs.items(), key=lambda found: not _passed(found[1]))) for runs in measured]


def _turns(num_jobs: int, repeats: int) -> Iterator[tuple[int, int]]:
    """Every file in every turn (from 1), each turn in another order; the first as they came."""
    order = list(range(num_jobs))
    for turn in range(1, repeats + 1):
        yield from ((turn, number) for number in order)
        random.Random(turn).shuffle(order)  # noqa: S311 (no secret)


def _preset(job: ProfileJob, runs: dict[str, list[Run]], mode: str) -> Preset:
    """The rules of a mode; the second of two that both compute right is a comparison: a fifth of the time does."""
    if mode in runs:
        return runs[mode][0].preset
    quotable = any(_passed(found) for found in runs.values())
    return replace(job.preset, min_seconds=job.preset.min_seconds / 5) if quotable else job.preset


def _run(target: Target, job: ProfileJob, mode: str, preset: Preset, turn: int, path: Path, progress: Progress) -> Run:
    answer = run_job(target, job.work(mode, preset, turn, path), progress)
    with np.load(path) as arrays:
        return Run(preset, job.device.clocks, answer, dict(arrays))


def _passed(runs: Sequence[Run]) -> bool:
    return all(run.passed for run in runs)


def _samples(measured: dict[str, list[Run]]) -> dict[str, NDArray[Any]]:
    """The quoted mode's arrays of the first process by their own names; others' with `_<mode>`, `_<number>` behind."""
    named: dict[str, NDArray[Any]] = {}
    for place, (mode, runs) in enumerate(measured.items()):
        for number, run in enumerate(runs, start=1):
            behind = f"{f'_{mode}' if place else ''}{f'_{number}' if number > 1 else ''}"
            named |= {f"{name}{behind}": array for name, array in run.arrays.items()}
    return named


def _written(job: ProfileJob, measured: dict[str, list[Run]], out: Path, identity: Json) -> Json:
    samples_path = out.with_suffix(".npz")
    with atomic_path(samples_path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **_samples(measured))
    record = {
        **_record(job, measured),
        "outputs": {samples_path.name: sha256_of(samples_path)},
        **identity,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_record(out, record)
    return record


def _record(job: ProfileJob, measured: dict[str, list[Run]]) -> Json:
    quoted = next(iter(measured.values()))
    answer = quoted[0].answer
    entry = next(entry for entry in job.entries() if entry["path"] == answer["file"])
    about = job.about(entry)
    failed = [mode for mode, runs in measured.items() if not _passed(runs)]
    by_mode = {mode: rows_of(about, runs, _remarks(job, entry, runs, failed)) for mode, runs in measured.items()}
    # the single streams of all modes first: what they had and what is quoted is the first
    rows = [rows[0] for rows in by_mode.values()] + [row for rows in by_mode.values() for row in rows[1:]]
    num_images = len(about.labels) if about.labels is not None else 0
    return {
        "schema": SCHEMA,
        **rows[0],
        "rows": rows,
        "top1_interval": statistics.top1_interval(round(rows[0]["top1"] / 100 * num_images), num_images),
        "arch": job.manifest()["arch"],
        "preset": job.preset.name,
        **facts_of(quoted, job.preset, job.threads),
        "modes": {mode: {"golden": runs[0].answer["golden"]} for mode, runs in measured.items()},
        **provenance(),
        "machine": answer["machine"],
        "inputs": {"manifest.json": sha256_of(job.bundle_dir / "manifest.json"), entry["path"]: entry["sha256"]},
    }


def facts_of(runs: Sequence[Run], preset: Preset, threads: int) -> Json:
    """What a record says of how its first row was made: the first process's facts; every process's under `runs`."""
    answer = runs[0].answer
    return {
        "peak_memory_bytes": answer["memory"]["peak_bytes"],
        "memory": {**answer["memory"], "includes": _MEMORY_INCLUDES},
        "runtime": {**answer["runtime"], "threads_asked": threads},
        "protocol": _protocol(preset),
        "timing": {**answer["timing"], **course(runs[0])},
        "golden": {"before": None, "after": None, **answer["golden"]},
        "clocks": answer["clocks"],
        "runs": [
            {
                "n": len(run.samples),
                "latency_ms": statistics.latency_ms(run.samples),
                "cold_load_ms": run.answer["timing"]["cold_load_ms"],
                "first_inference_ms": run.answer["timing"]["first_inference_ms"],
                **course(run),
            }
            for run in runs
        ],
    }


def _remarks(job: ProfileJob, entry: Json, runs: Sequence[Run], failed: list[str]) -> list[str]:
    """What must be said beside the numbers; failed: the modes whose golden check failed here."""
    remarks = [f"over budget: {entry['reason']}"] if entry.get("status") == "over budget" else []
    if _passed(runs) and failed:
        mode = runs[0].answer["mode"]
        remarks.append(
            f"mode {mode}: in mode {failed[0]} this processor's int8 sums saturate and the golden check fails"
        )
    if runs[0].preset != job.preset:
        seconds = runs[0].preset.min_seconds
        remarks.append(f"a comparison: timed for {seconds:g} s, not {job.preset.min_seconds:g} s")
    return remarks


_MEMORY_INCLUDES = "the whole process: interpreter, numpy, runtime, weights, activations, 64 prepared inputs"


def _protocol(preset: Preset) -> Json:
    """The rules the row was made by: rows of different rules are never drawn in one series."""
    return {
        "version": 1,
        "agent": PROTOCOL,
        "quantity": "t_e2e: input in host memory to output in host memory, one call after the other",
        "clock": "time.perf_counter_ns",
        "percentiles": "nearest rank; null below the count of MLPerf's early-stopping rule",
        "intervals": "95 %, distribution-free, by ranks; the moving-block bootstrap's where calls depend on each other",
        "bounds": "99 %, MLPerf's early-stopping estimate",
        "processes": "fresh ones, files taking turns; the median process, the envelope of their intervals",
        "periodic": "latency from when a frame was due; deadline: when the next one is",
        "outliers": "none removed",
        "preset": asdict(preset),
    }
