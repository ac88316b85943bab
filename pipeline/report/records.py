"""The records of a run, read back: roles, bundles, profiles, training curves, pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from afpkd.errors import UserError
from afpkd.record import Json, read_record
from deploy.profile_record import SCHEMA
from export.bundle import read_manifest
from pipeline.failures import failures
from pipeline.lineage import CURVES, PICTURES, is_trained_anew
from pipeline.recorded import MEASURED, TRAINED, checked, recorded
from pipeline.report.wording import NONE, ROLES, command

_MANIFEST = Path("bundle", "manifest.json")


@dataclass(frozen=True, slots=True)
class Records:
    """All records of one recipe. Keys of `records`, `manifests` and `curves` are roles."""

    name: str
    description: str
    expected: Mapping[str, Json]
    """Published numbers to stand beside ours: name -> {"top1": percent, "source": text}."""
    devices: tuple[str, ...]
    """All where it was measured, or that was tried; `profiles` and `failures` are of those asked for."""
    records: dict[str, Json]
    manifests: dict[str, Json]
    prompts: Json | None
    pictures: dict[str, bytes]
    """What the prompts look at: PNG by its path in the run, shallow to deep."""
    curves: dict[str, list[Json]]
    """Finished epochs in order."""
    profiles: list[Json]
    """In the order of role, device, precision. An outdated one is INVALID and carries `stale`: True."""
    failures: Sequence[Json] = ()
    """Measurements that failed: `device` and `error`."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What make must be told to do it again, beside the goals: RECIPE, and RUNS where that is not its default."""

    def profile(self, role: str, device: str, precision: str) -> Json | None:
        """Give the role's profile of the file as it is exported now, or None."""
        wanted = (role, device, precision)
        found = (p for p in self.profiles if (p["role"], p["device"], p["precision"]) == wanted and not p["stale"])
        return next(found, None)

    def exports(self, role: str, precision: str) -> bool:
        """Whether the role's bundle of now has such a file; also where there is none that would say."""
        manifest = self.manifests.get(role)
        return manifest is None or any(file["precision"] == precision for file in manifest["files"])

    def data(self) -> str:
        """Name the data set."""
        return next((record["data"] for record in self.records.values() if "data" in record), NONE)

    def data_sha256(self) -> str:
        """Give the hash of its images: accuracies on others do not compare, whatever their name."""
        return str(next((found["data"] for found in map(_inputs, self.records.values()) if "data" in found), NONE))

    def command(self, *targets: str, device: str = "local") -> str:
        """Write the make command that does `targets` of this run again."""
        return command(self.variables, *targets, device=device)

    def places(self) -> list[tuple[str, str]]:
        """List each (device, precision) where something was measured that is exported still."""
        found = (p for p in self.profiles if self.exports(p["role"], p["precision"]))
        return sorted({(p["device"], p["precision"]) for p in found})


def read_records(
    run_dir: Path,
    name: str,
    *,
    description: str = "",
    expected: Mapping[str, Json] | None = None,
    devices: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    out: Path | None = None,
) -> Records:
    """Read what there is under `runs/<recipe>`; UserError where a record is broken, or where there is none at all.

    devices: only profiles of these, all where none is named. variables: default RECIPE=name. out: where the report will
    lie, default: beside the records.
    """
    variables = variables or {"RECIPE": name}
    records = {role: recorded(path, *TRAINED) for role in ROLES if (path := run_dir / role / "record.json").exists()}
    if not records:
        raise UserError("E_RUN_MISSING", f"{run_dir}: nothing to report yet: run `{command(variables, 'distill')}`")
    tuned = run_dir / "prompts" / "record.json"
    # those of an earlier method may still lie there
    prompts = recorded(tuned) if tuned.exists() and "prompts" in _inputs(records.get("student")) else None
    curves = {role: _epochs(path) for role in ROLES if (path := run_dir / role / CURVES).exists()}
    manifests = read_manifests(run_dir)
    profiles, failed = read_profiles(run_dir, records, manifests), failures(run_dir)
    return Records(
        name=name,
        description=description,
        expected=expected or {},
        devices=tuple(sorted({row["device"] for row in (*profiles, *failed)})),
        records=records,
        manifests=manifests,
        prompts=prompts,
        pictures=_pictures(run_dir, out or run_dir) if prompts else {},
        curves={role: epochs for role, epochs in curves.items() if epochs},
        profiles=sorted(
            (p for p in profiles if not devices or p["device"] in devices),
            key=lambda p: (list(ROLES).index(p["role"]), p["device"], p["precision"]),
        ),
        failures=[row for row in failed if not devices or row["device"] in devices],
        variables=variables,
    )


def require_measured(runs: Sequence[Records], devices: Sequence[str]) -> None:
    """UserError where none of the runs was measured on one of the devices, nor tried."""
    known = {device for run in runs for device in run.devices}
    for device in devices:
        if device not in known:
            told = f"nothing was measured there (it was on: {', '.join(sorted(known)) or 'no device'})"
            mend = f"name another device, or run `{runs[0].command('profile', device=device)}`"
            raise UserError("E_RUN_MISSING", f"--devices {device}: {told}: {mend}")


def metric_of_record(record: Json) -> str:
    """Give the name of the score that chose the epoch: top1, or ap of a detector."""
    return "ap" if "test_ap_selected" in record["metrics"] else "top1"


def score_of(record: Json) -> float | None:
    """Give the test score in percent of the epoch whose weights travel on; None where it was not tested."""
    score: float | None = record["metrics"].get(f"test_{metric_of_record(record)}_selected")
    return score


def read_manifests(run_dir: Path) -> dict[str, Json]:
    """Read what was exported, by role."""
    found = {role: run_dir / role / _MANIFEST for role in ROLES}
    return {role: read_manifest(path.parent) for role, path in found.items() if path.exists()}


def read_profiles(run_dir: Path, records: Mapping[str, Json], manifests: Mapping[str, Json]) -> list[Json]:
    """Read what was measured; INVALID and `stale` where it is of a network or a file that is gone."""
    found = sorted(run_dir.glob("profiles/*/[!.]*.json"))
    return [_judged(recorded(path, *MEASURED), manifests, records) for path in found]


def read_profile(path: Path) -> Json:
    """Read one profile in the same way, from wherever its run lies."""
    profile = read_record(path)
    if profile.get("schema") != SCHEMA:
        told = f"{path}: {profile.get('schema')}: not a profile: name a run's folder or one of its profiles/*/*.json"
        raise UserError("E_RECORD", told)
    checked(profile, path, *MEASURED, or_null=("role", "precision", "arch"))
    role = str(profile.get("role"))
    own = path.resolve().parent.parent.parent / role
    bundle, record = own / _MANIFEST.parent, own / "record.json"
    manifests = {role: read_manifest(bundle)} if (own / _MANIFEST).exists() else {}
    return _judged(profile, manifests, {role: recorded(record)} if record.exists() else {})


def _pictures(run_dir: Path, out: Path) -> dict[str, bytes]:
    found = sorted((run_dir / "prompts").glob(PICTURES), key=lambda path: (len(path.name), path.name))
    return {Path(os.path.relpath(path, out)).as_posix(): path.read_bytes() for path in found}


def _inputs(record: Json | None) -> Json:
    found: Json = (record or {}).get("inputs", {})
    return found


def _judged(profile: Json, manifests: Mapping[str, Json], records: Mapping[str, Json]) -> Json:
    """A profile; where what it measured is no longer what there is, its verdict says so."""
    role = profile.get("role", "")
    reason = _why_stale(profile, manifests.get(role), records.get(role))
    if reason:
        rows = [{**row, "verdict": "INVALID", "reasons": [reason, *row["reasons"]]} for row in profile["rows"]]
        profile |= {"verdict": "INVALID", "reasons": [reason, *profile["reasons"]], "rows": rows}
    return {**profile, "stale": bool(reason)}


def _why_stale(profile: Json, manifest: Json | None, record: Json | None) -> str:
    """Say why the profile is of something that is gone; nothing where it is not, or where the bundle itself is gone."""
    if manifest is None:
        return ""
    now = {file["path"]: file["sha256"] for file in manifest["files"]}
    measured = {path: sha256 for path, sha256 in profile["inputs"].items() if path != _MANIFEST.name}
    if not measured.keys() <= now.keys():
        return "outdated: the file is no longer exported"
    if any(now[path] != sha256 for path, sha256 in measured.items()):
        return "outdated: the exported file has changed since it was measured"
    if is_trained_anew(manifest, record):
        return "outdated: the network was trained anew and has not been exported since"
    return ""


def _epochs(path: Path) -> list[Json]:
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(
            "E_RECORD", f"{path}: not one JSON document a line ({error}): delete it and train again"
        ) from None
