"""The stage `profile`: a bundle's file on a device -> a record with a verdict, and its raw samples beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json, UserError, provenance, sha256_of, write_record
from deploy import statistics
from deploy.agent import PROTOCOL
from deploy.devices import Device, find_device, open_target, with_runtime
from deploy.jobs import Progress, Work, run_job
from deploy.lock import only_measurement
from deploy.presets import Preset, find_preset
from export.bundle import read_manifest

SCHEMA = "afpkd.profile/1"
_BATCH = 1
_SAMPLES = "samples.npz"


def profile_bundle(
    bundle_dir: Path,
    *,
    device: str,
    precision: str,
    preset: str,
    threads: int,
    out: Path,
    recipe: str,
    config_digest: str,
    progress: Progress = lambda text, done, total: None,
) -> Json:
    """Measure one file of a bundle on a device; write the record to `out`, raw samples to `out` with suffix .npz.

    `threads` 0 is the runtime's own default. The record comes last, atomically: it exists exactly where all is done.
    A failed golden check is a result (verdict INVALID, no latency), not an error. UserError: unknown device, preset or
    precision, broken bundle, or an agent that failed.
    """
    if threads < 0:
        raise UserError(f"threads = {threads}: expected 0 (the runtime's default) or more")
    job = _Job(bundle_dir, with_runtime(find_device(device)), precision, find_preset(preset), threads)
    samples_path = out.with_suffix(".npz")
    out.unlink(missing_ok=True)  # an old record must not vouch for new samples
    answer = _measure(job, samples_path, progress)
    with np.load(samples_path) as arrays:
        samples, predictions = arrays["samples_ns"], arrays["predictions"]
    record = {
        **_record(job, answer, samples, predictions),
        "outputs": {samples_path.name: sha256_of(samples_path)},
        "recipe": recipe,
        "config_digest": config_digest,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_record(out, record)
    return record


@dataclass(frozen=True, slots=True)
class _Job:
    """What is measured, where, and by which rules."""

    bundle_dir: Path
    device: Device
    precision: str
    preset: Preset
    threads: int

    def manifest(self) -> Json:
        return read_manifest(self.bundle_dir)

    def file_entry(self) -> Json:
        """The manifest's entry of the file for this precision that the device's runtime can load."""
        entries: list[Json] = [
            entry for entry in self.manifest()["files"] if entry["runtime"] in ("any", self.device.runtime)
        ]
        for entry in entries:
            if entry["precision"] == self.precision:
                return entry
        known = ", ".join(sorted({entry["precision"] for entry in entries})) or "none"
        raise UserError(
            f"{self.bundle_dir}: no {self.precision} file for {self.device.runtime} (it has: {known}): "
            "add it to the recipe's export"
        )

    def files(self) -> list[str]:
        """Names of the bundle's files that travel: labels stay, the host counts."""
        manifest = self.manifest()
        names = [
            "manifest.json",
            self.file_entry()["path"],
            manifest["golden"]["path"],
            manifest["evaluation"]["images"],
        ]
        for name in names:
            if not (self.bundle_dir / name).is_file():
                raise UserError(f"{self.bundle_dir / name}: missing from the bundle: export it again")
        return names

    def request(self) -> Json:
        return {
            "bundle": "bundle",
            "precision": self.precision,
            "runtime": self.device.runtime,
            "batch": _BATCH,
            "threads": self.threads,
            "preset": asdict(self.preset),
            "evaluate": True,
            "out": _SAMPLES,
            **({"options": dict(self.device.options)} if self.device.runtime == "tensorrt" else {}),
        }


def _measure(job: _Job, samples_path: Path, progress: Progress) -> Json:
    """Measure as a job on the device, fetch its arrays to `samples_path`; give its answer."""
    work = Work(
        verb="profile",
        request=job.request(),
        files={f"bundle/{name}": job.bundle_dir / name for name in job.files()},
        results={_SAMPLES: samples_path},
        max_seconds=job.device.max_seconds,
        clocks=job.device.clocks,
        tied=job.device.transport == "local",
    )
    with only_measurement(job.device.machine), open_target(job.device) as target:
        return run_job(target, work, progress)


def _record(job: _Job, answer: Json, samples: statistics.Samples, predictions: NDArray[np.int64]) -> Json:
    manifest, entry = job.manifest(), job.file_entry()
    drift_percent = statistics.drift_percent(samples)
    labels = np.load(job.bundle_dir / manifest["evaluation"]["labels"])
    verdict, reasons = statistics.verdict(_facts(job.preset, answer, len(samples), drift_percent))
    row = {
        "device": job.device.name,
        "role": manifest["role"],
        "precision": job.precision,
        "scenario": "single_stream",
        "batch": _BATCH,
        "threads": answer["runtime"]["threads"],
        "n": len(samples),
        "latency_ms": statistics.latency_ms(samples),
        "throughput_ips": statistics.throughput_ips(samples, _BATCH),
        "macs": manifest["macs"]["macs"],
        "num_params": manifest["num_params"],
        "size_bytes": entry["size_bytes"],
        "top1": statistics.top1_percent(predictions, labels),
        "verdict": verdict,
        "reasons": reasons,
    }
    return {
        "schema": SCHEMA,
        **row,
        "rows": [row],
        "arch": manifest["arch"],
        "preset": job.preset.name,
        "peak_memory_bytes": answer["memory"]["peak_bytes"],
        "memory": {**answer["memory"], "includes": _MEMORY_INCLUDES},
        "runtime": {**answer["runtime"], "threads_asked": job.threads},
        "protocol": _protocol(job.preset),
        "timing": {**answer["timing"], "drift_percent": drift_percent},
        "golden": {"before": None, "after": None, **answer["golden"]},
        "clocks": answer["clocks"],
        **provenance(),
        "machine": answer["machine"],
        "inputs": {"manifest.json": sha256_of(job.bundle_dir / "manifest.json"), entry["path"]: entry["sha256"]},
    }


_MEMORY_INCLUDES = "the whole process: interpreter, numpy, runtime, weights, activations, 64 prepared inputs"


def _facts(preset: Preset, answer: Json, num_samples: int, drift_percent: float | None) -> statistics.Facts:
    timing: dict[str, Any] = answer["timing"]
    return statistics.Facts(
        n=num_samples,
        min_count=preset.min_count,
        steady=timing.get("warm_up", {}).get("steady"),
        drift_percent=drift_percent,
        golden=[check["ok"] for check in answer["golden"].values()],
        foreign_cpus=timing.get("foreign_cpus"),
        num_cpus=answer["machine"]["num_cpus"],
        num_inputs=timing.get("num_inputs"),
    )


def _protocol(preset: Preset) -> Json:
    """The rules the row was made by: rows of different rules are never drawn in one series."""
    return {
        "version": 1,
        "agent": PROTOCOL,
        "quantity": "t_e2e: input in host memory to output in host memory, one call after the other",
        "clock": "time.perf_counter_ns",
        "percentiles": "nearest rank; null below the count of MLPerf's early-stopping rule",
        "outliers": "none removed",
        "preset": asdict(preset),
    }
