"""Put a bundle on devices as their current release, look at what is there, go back to the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from afpkd.record import Json, sha256_of
from deploy.devices import Device, open_target, with_runtime
from deploy.fleet import call_each, on_each
from deploy.jobs import Patience, Work, run_job
from deploy.profile_job import fitting_entries
from deploy.target import DeviceError
from export.bundle import read_manifest


def deploy_bundle(
    bundle_dir: Path, names: Sequence[str], *, precision: str, keep: int, progress: Callable[[str, str, int, int], None]
) -> list[Json]:
    """Deploy one file of a bundle on every device; a row each: `device`, and its `release` or `error`.

    `progress` is told (device, text, done, total). A file over its budget of accuracy is refused. UserError before
    anything starts: an unknown device, a broken bundle.
    """
    manifest = read_manifest(bundle_dir)
    release = f"{manifest['role']}-{precision}-{sha256_of(bundle_dir / 'manifest.json')[:12]}"

    patience = Patience()

    def deploy(device: Device) -> Json:
        if device.address is None:
            raise DeviceError(device.name, "E_LOCAL", "a release is for another machine: name one of devices.toml")
        settled = with_runtime(device)
        with open_target(settled) as target:
            work = _work(bundle_dir, manifest, settled, precision, release, keep, list(target.python))
            return run_job(target, work, partial(progress, device.name), patience)

    return on_each(names, deploy, patience.stop)


def deployed(names: Sequence[str]) -> list[Json]:
    """Say what is deployed on every device: `releases`, the newest first, and `current`."""
    return call_each(names, "status", lambda device: {})


def roll_back(names: Sequence[str]) -> list[Json]:
    """Make the release before the current one current again, on every device."""
    return call_each(names, "rollback", lambda device: {})


def _work(
    bundle_dir: Path, manifest: Json, device: Device, precision: str, release: str, keep: int, python: list[str]
) -> Work:
    """The job: files that travel are those of the precision, the golden inputs, and the labels for people."""
    fitting = fitting_entries(bundle_dir, manifest, device, precision)
    models = [entry["path"] for entry in fitting]
    files = dict.fromkeys(["manifest.json", *models, manifest["golden"]["path"], manifest["labels"]])
    return Work(
        verb="deploy",
        request={
            "id": release,
            "bundle": "bundle",
            "precision": precision,
            "runtime": device.runtime,
            "threads": 0,
            "keep": keep,
            "python": python,
            "root": "../..",  # a job's folder is jobs/<id>
            "options": dict(device.options),
        },
        files={f"bundle/{name}": bundle_dir / name for name in files},
        max_seconds=device.max_seconds,
        budget_bytes=device.budget_bytes,
    )
