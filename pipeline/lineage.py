"""Is a run what its records say? Every artifact hashed again, from the teacher to the report's profiles.

A record carries the hashes of what its stage read (`inputs`) and wrote (`outputs`). A file that was changed, truncated
or swapped no longer has the hash under which it was recorded; a stage made from another teacher than the one that lies
there names a hash that is not there. Nothing is trusted but the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from afpkd.errors import UserError
from afpkd.record import Json, read_record, sha256_of

WEIGHTS = "model.safetensors"
STAGES = ("teacher", "prompts", "student", "undistilled")
_FEEDS = ("teacher", "prompts")  # stages that another stage names among its inputs


class Lineage(NamedTuple):
    """num_files: how many files were hashed; faults: one line each, the file first; none: the run is whole."""

    num_files: int
    faults: list[str]


def lineage(run_dir: Path) -> Lineage:
    """Hash everything of `runs/<recipe>` again; UserError where there is no run."""
    stages = {stage: run_dir / stage for stage in STAGES if (run_dir / stage / "record.json").is_file()}
    if "student" in stages and not _made_from(stages["student"], "prompts"):
        stages.pop("prompts", None)  # of an earlier method: nothing is made from them
    if not stages:
        raise UserError("E_RUN_MISSING", f"{run_dir}: no record of a stage here: name a run, such as runs/default")
    hashes = {path: sha256_of(path) for path in _files(run_dir)}
    faults = [fault for stage in stages for fault in _stage_faults(run_dir, stage, hashes)]
    faults += [fault for stage, folder in stages.items() for fault in _bundle_faults(folder, stage, hashes)]
    faults += [
        fault for path in sorted(run_dir.glob("profiles/*/[!.]*.json")) for fault in _profile_faults(path, hashes)
    ]
    return Lineage(len(hashes), [str(fault) for fault in faults + _data_faults(stages)])


def require_recorded(folder: Path, name: str) -> str:
    """Give the sha256 of `folder/name`; UserError where it is not the one that `folder/record.json` recorded."""
    recorded = read_record(folder / "record.json").get("outputs", {}).get(name)
    if not (folder / name).is_file():
        told = f"{folder / name}: not there, though {folder / 'record.json'} is: delete that and run its stage again"
        raise UserError("E_RUN_CHANGED", told)
    found = sha256_of(folder / name)
    if found != recorded:
        raise UserError(
            "E_RUN_CHANGED", f"{folder / name}: {_CHANGED}: delete {folder / 'record.json'} and run its stage again"
        )
    return found


_CHANGED = "its bytes are not those that were recorded"


def _files(run_dir: Path) -> Iterator[Path]:
    """What records vouch for: weights, records, bundles, profiles. Reports and curves are made from them."""
    for pattern in ("*/*.safetensors", "*/record.json", "*/bundle/*", "profiles/*/[!.]*.json", "profiles/*/[!.]*.npz"):
        yield from (path for path in sorted(run_dir.glob(pattern)) if path.is_file())


def _stage_faults(run_dir: Path, stage: str, hashes: Mapping[Path, str]) -> Iterator[UserError]:
    path = run_dir / stage / "record.json"
    try:
        record = read_record(path)
    except UserError as error:
        yield error
        return
    if record.get("role", stage) != stage:
        yield _fault(f"{path}: the record of {record['role']} lies in the folder of {stage}")
    yield from _changed(path, record.get("outputs", {}), hashes)
    for kind in _FEEDS:
        made_from, there = record.get("inputs", {}).get(kind), hashes.get(run_dir / kind / WEIGHTS)
        if made_from and made_from != there:
            yield _fault(
                f"{path}: made from {kind} {made_from[:12]}, which is not what lies there: run the stage again"
            )


def _data_faults(stages: Mapping[str, Path]) -> list[UserError]:
    """Stages that saw different images do not belong to one run."""
    seen: dict[str, list[str]] = {}
    for stage, folder in stages.items():
        with suppress(UserError):  # named by the stage's own faults
            seen.setdefault(str(read_record(folder / "record.json").get("inputs", {}).get("data")), []).append(stage)
    said = " and ".join(f"{', '.join(names)} on {data[:12]}" for data, names in seen.items())
    run = next(iter(stages.values())).parent
    return [_fault(f"{run}: stages saw different data: {said}: run them again")] if len(seen) > 1 else []


def _made_from(folder: Path, kind: str) -> bool:
    with suppress(UserError):  # a broken record is named by its own stage
        return kind in read_record(folder / "record.json").get("inputs", {})
    return True


def _fault(line: str) -> UserError:
    return UserError("E_RUN_CHANGED", line)


def _bundle_faults(folder: Path, stage: str, hashes: Mapping[Path, str]) -> Iterator[UserError]:
    from export.sealed import verify_bundle

    bundle = folder / "bundle"
    if not bundle.is_dir() or not any(bundle.iterdir()):  # Snakemake makes the folder before anything is exported
        return
    try:
        manifest = verify_bundle(bundle)
    except UserError as error:
        yield error
        return
    if manifest["role"] != stage:
        yield _fault(f"{bundle}: the bundle of {manifest['role']} lies in the folder of {stage}")
    # the record also holds times and machines: a stage that ran again with the same result made no other network
    if manifest["lineage"]["weights"] != hashes.get(folder / WEIGHTS):
        yield _fault(f"{bundle}: exported from other weights than {folder / WEIGHTS}: export it again")


def _profile_faults(path: Path, hashes: Mapping[Path, str]) -> Iterator[UserError]:
    try:
        record = read_record(path)
    except UserError as error:
        yield error
        return
    yield from _changed(path, record.get("outputs", {}), hashes)
    bundle = path.parents[2] / str(record.get("role")) / "bundle"
    for name, made_from in record.get("inputs", {}).items():
        if hashes.get(bundle / name) != made_from:
            yield _fault(f"{path}: measured on another {bundle / name}: measure it again")


def _changed(path: Path, outputs: Json, hashes: Mapping[Path, str]) -> Iterator[UserError]:
    """Outputs that are missing or have other bytes than the record at `path` says; a record without any is one."""
    if not outputs:
        yield _fault(f"{path}: names no outputs: run its stage again")
    for name, recorded in outputs.items():
        found = hashes.get(path.parent / name)
        if found != recorded:
            yield _fault(f"{path.parent / name}: {_CHANGED if found else 'missing'}: run its stage again")
