"""The records of a run, read back: roles, bundles, profiles, training curves, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from afpkd.errors import UserError
from afpkd.record import Json, read_record
from pipeline.failures import failures
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
    """Those asked for; empty: all."""
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

    def profile(self, role: str, device: str, precision: str) -> Json | None:
        """Give the role's profile of the file as it is exported now, or None."""
        wanted = (role, device, precision)
        found = (p for p in self.profiles if (p["role"], p["device"], p["precision"]) == wanted and not p["stale"])
        return next(found, None)

    def data(self) -> str:
        """Name the data set: accuracies on different ones do not compare."""
        return next((record["data"] for record in self.records.values() if "data" in record), NONE)

    def places(self) -> list[tuple[str, str]]:
        """List each (device, precision) where something was measured."""
        return sorted({(p["device"], p["precision"]) for p in self.profiles})


def read_records(
    run_dir: Path,
    name: str,
    *,
    description: str = "",
    expected: Mapping[str, Json] | None = None,
    devices: Sequence[str] = (),
) -> Records:
    """Read what there is under `runs/<recipe>`; UserError where a record is broken, or where there is none at all.

    devices: only profiles of these, all where none is named.
    """
    records = {role: read_record(path) for role in ROLES if (path := run_dir / role / "record.json").exists()}
    if not records:
        raise UserError("E_RUN_MISSING", f"{run_dir}: nothing to report yet: run `{command(name, 'distill')}`")
    tuned = run_dir / "prompts" / "record.json"
    # those of an earlier method may still lie there
    prompts = read_record(tuned) if tuned.exists() and "prompts" in _inputs(records.get("student")) else None
    curves = {role: _epochs(path) for role in ROLES if (path := run_dir / role / "metrics.jsonl").exists()}
    manifests = {role: read_record(path) for role in ROLES if (path := run_dir / role / _MANIFEST).exists()}
    profiles = [_profile(path, manifests) for path in run_dir.glob("profiles/*/[!.]*.json")]
    return Records(
        name=name,
        description=description,
        expected=expected or {},
        devices=tuple(devices),
        records=records,
        manifests=manifests,
        prompts=prompts,
        pictures=_pictures(run_dir) if prompts else {},
        curves={role: epochs for role, epochs in curves.items() if epochs},
        profiles=sorted(
            (p for p in profiles if not devices or p["device"] in devices),
            key=lambda p: (list(ROLES).index(p["role"]), p["device"], p["precision"]),
        ),
        failures=[row for row in failures(run_dir) if not devices or row["device"] in devices],
    )


def metric_of_record(record: Json) -> str:
    """Give the name of the score that chose the epoch: top1, or ap of a detector."""
    return "ap" if "test_ap_selected" in record["metrics"] else "top1"


def score_of(record: Json) -> float | None:
    """Give the test score in percent of the epoch whose weights travel on; None where it was not tested."""
    score: float | None = record["metrics"].get(f"test_{metric_of_record(record)}_selected")
    return score


def _pictures(run_dir: Path) -> dict[str, bytes]:
    found = sorted((run_dir / "prompts").glob("level*.png"), key=lambda path: (len(path.name), path.name))
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in found}


def _inputs(record: Json | None) -> Json:
    found: Json = (record or {}).get("inputs", {})
    return found


def _profile(path: Path, manifests: Mapping[str, Json]) -> Json:
    """Read a profile; where the file it measured is no longer the exported one, say so in its verdict."""
    profile = read_record(path)
    stale = _is_stale(profile, manifests.get(profile["role"]))
    if stale:
        reason = "outdated: the exported file has changed since it was measured"
        rows = [{**row, "verdict": "INVALID", "reasons": [reason, *row["reasons"]]} for row in profile["rows"]]
        profile |= {"verdict": "INVALID", "reasons": [reason, *profile["reasons"]], "rows": rows}
    return {**profile, "stale": stale}


def _is_stale(profile: Json, manifest: Json | None) -> bool:
    """Whether a file the profile read has another hash in the bundle now. Profiles of a bundle that is gone stay."""
    now = {file["path"]: file["sha256"] for file in manifest["files"]} if manifest else {}
    return any(now.get(path, sha256) != sha256 for path, sha256 in profile["inputs"].items())


def _epochs(path: Path) -> list[Json]:
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(
            "E_RECORD", f"{path}: not one JSON document a line ({error}): delete it and train again"
        ) from None
