"""The stage `profile`: a bundle's file on a device -> a record with a verdict, and its raw samples beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json, UserError, atomic_path, provenance, sha256_of, write_record
from deploy import statistics
from deploy.agent import PROTOCOL
from deploy.devices import Device, find_device, open_target, with_runtime
from deploy.jobs import Progress, Work, run_job
from deploy.lock import only_measurement
from deploy.presets import Preset, find_preset
from export.bundle import read_manifest

SCHEMA = "afpkd.profile/1"
_BATCH = 1


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
    measured = _measure(job, progress)
    with atomic_path(samples_path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **_samples(measured))
    record = {
        **_record(job, measured),
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

    def entries(self) -> list[Json]:
        """The manifest's entries of this precision for the device's runtime; which one, its version there decides."""
        entries: list[Json] = [
            entry for entry in self.manifest()["files"] if entry["runtime"] in ("any", self.device.runtime)
        ]
        fitting = [entry for entry in entries if entry["precision"] == self.precision]
        if not fitting:
            known = ", ".join(sorted({entry["precision"] for entry in entries})) or "none"
            raise UserError(
                f"{self.bundle_dir}: no {self.precision} file for {self.device.runtime} (it has: {known}): "
                "add it to the recipe's export"
            )
        return fitting

    def files(self) -> list[str]:
        """Names of the bundle's files that travel: labels stay, the host counts."""
        manifest = self.manifest()
        models = [entry["path"] for entry in self.entries()]
        names = ["manifest.json", *models, manifest["golden"]["path"], manifest["evaluation"]["images"]]
        for name in names:
            if not (self.bundle_dir / name).is_file():
                raise UserError(f"{self.bundle_dir / name}: missing from the bundle: export it again")
        return list(dict.fromkeys(names))

    def modes(self) -> tuple[str, ...]:
        """How the runtime is run: ONNX Runtime adds up int8 in two ways, one of them wrong on some processors."""
        return (
            ("default", "precise") if (self.device.runtime, self.precision) == ("onnxruntime", "int8") else ("default",)
        )

    def request(self, mode: str, preset: Preset) -> Json:
        return {
            "bundle": "bundle",
            "precision": self.precision,
            "runtime": self.device.runtime,
            "batch": _BATCH,
            "threads": self.threads,
            "preset": asdict(preset),
            "evaluate": True,
            "out": f"{mode}.npz",
            "mode": mode,
            "options": dict(self.device.options),
        }

    def work(self, mode: str, preset: Preset, samples: Path) -> Work:
        """The measurement in one mode, as a job; its arrays go to `samples`."""
        return Work(
            verb="profile",
            request=self.request(mode, preset),
            files={f"bundle/{name}": self.bundle_dir / name for name in self.files()},
            results={f"{mode}.npz": samples},
            max_seconds=self.device.max_seconds,
            clocks=self.device.clocks,
            budget_bytes=self.device.budget_bytes,
            tied=self.device.transport == "local",
        )


class _Measured(NamedTuple):
    """What the agent answered in one mode, by which rules, and the arrays it left."""

    preset: Preset
    answer: Json
    arrays: dict[str, NDArray[Any]]

    @property
    def passed(self) -> bool:
        checks: dict[str, Json] = self.answer["golden"]
        return all(check["ok"] for check in checks.values())


def _measure(job: _Job, progress: Progress) -> list[_Measured]:
    """Measure as a job on the device, once a mode in a fresh process, and fetch what it left.

    The first is the one to quote: the runtime's default where that passes the golden check, else the mode that does.
    """
    measured: list[_Measured] = []
    with only_measurement(job.device.machine), open_target(job.device) as target, TemporaryDirectory() as folder:
        for mode in job.modes():
            quotable = any(found.passed for found in measured)
            # The second of two modes that both compute right is there to be compared: a fifth of the time does.
            preset = replace(job.preset, min_seconds=job.preset.min_seconds / 5) if quotable else job.preset
            path = Path(folder) / f"{mode}.npz"
            answer = run_job(target, job.work(mode, preset, path), progress)
            with np.load(path) as arrays:
                measured.append(_Measured(preset, answer, dict(arrays)))
    return sorted(measured, key=lambda found: not found.passed)


def _samples(measured: list[_Measured]) -> dict[str, NDArray[Any]]:
    """The arrays of the mode to quote under their own names, those of another with `_<mode>` behind."""
    quoted, *others = measured
    named = {f"{name}_{other.answer['mode']}": array for other in others for name, array in other.arrays.items()}
    return {**quoted.arrays, **named}


def _record(job: _Job, measured: list[_Measured]) -> Json:
    manifest, quoted = job.manifest(), measured[0].answer
    entry = next(entry for entry in job.entries() if entry["path"] == quoted["file"])
    labels = np.load(job.bundle_dir / manifest["evaluation"]["labels"])
    failed = [found.answer["mode"] for found in measured if not found.passed]
    rows = [_row(job, found, entry, labels, failed) for found in measured]
    return {
        "schema": SCHEMA,
        **rows[0],
        "rows": rows,
        "top1_interval": statistics.top1_interval(round(rows[0]["top1"] / 100 * len(labels)), len(labels)),
        "arch": manifest["arch"],
        "preset": job.preset.name,
        "peak_memory_bytes": quoted["memory"]["peak_bytes"],
        "memory": {**quoted["memory"], "includes": _MEMORY_INCLUDES},
        "runtime": {**quoted["runtime"], "threads_asked": job.threads},
        "protocol": _protocol(job.preset),
        "timing": {**quoted["timing"], "drift_percent": statistics.drift_percent(measured[0].arrays["samples_ns"])},
        "golden": {"before": None, "after": None, **quoted["golden"]},
        "modes": {found.answer["mode"]: {"golden": found.answer["golden"]} for found in measured},
        "clocks": quoted["clocks"],
        "clock": quoted["clock"],
        **provenance(),
        "machine": quoted["machine"],
        "inputs": {"manifest.json": sha256_of(job.bundle_dir / "manifest.json"), entry["path"]: entry["sha256"]},
    }


def _row(job: _Job, measured: _Measured, entry: Json, labels: NDArray[np.int64], failed: list[str]) -> Json:
    """One mode's numbers, with their verdict; failed: the modes whose golden check failed here."""
    manifest, answer, samples = job.manifest(), measured.answer, measured.arrays["samples_ns"]
    remarks = [f"over budget: {entry['reason']}"] if entry.get("status") == "over budget" else []
    if measured.passed and failed:
        remarks.append(
            f"mode {answer['mode']}: in mode {failed[0]} this processor's int8 sums saturate and the golden check fails"
        )
    if measured.preset != job.preset:
        remarks.append(f"a comparison: timed for {measured.preset.min_seconds:g} s, not {job.preset.min_seconds:g} s")
    facts = _facts(measured.preset, answer, len(samples), statistics.drift_percent(samples), remarks)
    verdict, reasons = statistics.verdict(facts)
    return {
        "device": job.device.name,
        "role": manifest["role"],
        "precision": job.precision,
        "mode": answer["mode"],
        "scenario": "single_stream",
        "batch": _BATCH,
        "threads": answer["runtime"]["threads"],
        "n": len(samples),
        "latency_ms": statistics.latency_ms(samples),
        "throughput_ips": statistics.throughput_ips(samples, _BATCH),
        "macs": manifest["macs"]["macs"],
        "num_params": manifest["num_params"],
        "size_bytes": entry["size_bytes"],
        "top1": statistics.top1_percent(measured.arrays["logits"].argmax(axis=1), labels),
        "verdict": verdict,
        "reasons": reasons,
    }


_MEMORY_INCLUDES = "the whole process: interpreter, numpy, runtime, weights, activations, 64 prepared inputs"


def _facts(
    preset: Preset, answer: Json, num_samples: int, drift_percent: float | None, remarks: list[str]
) -> statistics.Facts:
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
        remarks=remarks,
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
