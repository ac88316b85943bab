"""One file of a bundle as a job for a device: which files travel, what is asked, what is known of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from afpkd.errors import UserError
from afpkd.record import Json
from deploy.agent.measuring import SINGLE_STREAM
from deploy.agent.runtimes import files_of
from deploy.devices import Device
from deploy.jobs import Work
from deploy.presets import Preset
from deploy.rows import About
from deploy.target import DeviceError
from export.bundle import read_manifest

_BATCH = 1


@dataclass(frozen=True, slots=True)
class ProfileJob:
    """What is measured, where, and by which rules."""

    bundle_dir: Path
    device: Device
    precision: str
    preset: Preset
    threads: int
    scenarios: tuple[str, ...]

    def manifest(self) -> Json:
        """Read the bundle's manifest; UserError."""
        return read_manifest(self.bundle_dir)

    def entries(self) -> list[Json]:
        """The manifest's entries of this precision for the device's runtime; which one, its version there decides."""
        return fitting_entries(self.bundle_dir, self.manifest(), self.device, self.precision)

    def files(self) -> list[str]:
        """Names of the bundle's files that travel, and are hashed there: labels stay, the host counts by them."""
        manifest = self.manifest()
        models = [entry["path"] for entry in self.entries()]
        names = ["manifest.json", *models, manifest["golden"]["path"], manifest["evaluation"]["images"]]
        if manifest["task"] == "detection":  # how each image lies on its canvas
            names.append(manifest["evaluation"]["labels"])
        for name in names:
            if not (self.bundle_dir / name).is_file():
                raise UserError("E_BUNDLE", f"{self.bundle_dir / name}: missing from the bundle: export it again")
        return list(dict.fromkeys(names))

    def modes(self) -> tuple[str, ...]:
        """How the runtime is run: ONNX Runtime adds up int8 in two ways, one of them wrong on some processors."""
        return (
            ("default", "precise") if (self.device.runtime, self.precision) == ("onnxruntime", "int8") else ("default",)
        )

    def work(self, mode: str, preset: Preset, turn: int, samples: Path) -> Work:
        """The measurement in one mode, as a job; its arrays go to `samples`. Scenarios and accuracy: the first time."""
        request = {
            "bundle": "bundle",
            "precision": self.precision,
            "runtime": self.device.runtime,
            "batch": _BATCH,
            "threads": self.threads,
            "preset": asdict(preset),
            "evaluate": turn == 1,
            "out": "samples.npz",
            "mode": mode,
            "options": dict(self.device.options),
            "scenarios": list(self.scenarios if turn == 1 else (SINGLE_STREAM,)),
            "turn": turn,
        }
        return Work(
            verb="profile",
            request=request,
            files={f"bundle/{name}": self.bundle_dir / name for name in self.files()},
            results={"samples.npz": samples},
            max_seconds=self.device.max_seconds,
            clocks=self.device.clocks,
            budget_bytes=self.device.budget_bytes,
            tied=self.device.transport == "local",
        )

    def about(self, entry: Json) -> About:
        """What is known of the file that `entry` lists."""
        manifest = self.manifest()
        labels, detects = self.bundle_dir / manifest["evaluation"]["labels"], manifest["task"] == "detection"
        return About(
            device=self.device.name,
            role=manifest["role"],
            precision=self.precision,
            runtime=self.device.runtime,
            threads=self.threads,
            macs=manifest["macs"]["macs"],
            num_params=manifest["num_params"],
            size_bytes=entry["size_bytes"],
            labels=None if detects else np.load(labels),
            truth=labels if detects else None,
            batch=_BATCH,
        )


def fitting_entries(bundle_dir: Path, manifest: Json, device: Device, precision: str) -> list[Json]:
    """The entries of a manifest that suit the device's runtime and the precision; DeviceError E_BUNDLE without one."""
    entries = [entry for entry in manifest["files"] if entry["runtime"] in ("any", files_of(device.runtime))]
    fitting = [entry for entry in entries if entry["precision"] == precision]
    if not fitting:
        known = ", ".join(sorted({entry["precision"] for entry in entries})) or "none"
        told = f"{bundle_dir}: no {precision} file for {device.runtime} (it has: {known})"
        raise DeviceError(device.name, "E_BUNDLE", f"{told}: add it to the recipe's export")
    return fitting
