"""Is a run what its records say? Every artifact hashed again, from the teacher to the report's profiles.

A record carries the hashes of what its stage read (`inputs`) and wrote (`outputs`). A file that was changed, truncated
or swapped no longer has the hash under which it was recorded; a stage made from another teacher than the one that lies
there names a hash that is not there. Nothing is trusted but the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from afpkd.errors import UserError
from afpkd.record import Json, sha256_of
from pipeline.recorded import recorded

WEIGHTS = "model.safetensors"
STAGES = ("teacher", "prompts", "student", "undistilled")
PICTURES = "level*.png"
"""What prompts look at, beside their weights."""
CURVES = "metrics.jsonl"
UNFINISHED = "checkpoint.pt"
"""What a training that was cut short goes on from."""
UNRECORDED = "that vouches for it"
"""In the line of what a killed stage may leave: results whose record, which is written last, is not there."""
_FEEDS = ("teacher", "prompts")  # stages that another stage names among its inputs


class Lineage(NamedTuple):
    """num_files: how many files were hashed; faults: one line each, the file first; none: the run is whole."""

    num_files: int
    faults: list[str]


def lineage(run_dir: Path) -> Lineage:
    """Hash everything of `runs/<recipe>` again; UserError where there is no run."""
    profiles = sorted(run_dir.glob("profiles/*/[!.]*.json"))
    paths = {stage: path for stage in STAGES if (path := run_dir / stage / "record.json").is_file()}
    records, odd = _read([*paths.values(), *profiles])
    student = records.get(run_dir / "student" / "record.json")
    stages = [stage for stage in STAGES if stage != "prompts" or student is None or stage in student["inputs"]]
    paths = {stage: paths[stage] for stage in stages if stage in paths}  # no prompts of an earlier method
    if not paths:
        raise UserError("E_RUN_MISSING", f"{run_dir}: no record of a stage here: name a run, such as runs/default")
    hashes = {path: sha256_of(path) for path in _files(run_dir)}
    faults: list[UserError] = []
    for stage, path in paths.items():
        faults += [odd[path]] if path in odd else _stage_faults(path, stage, records[path], hashes)
    for stage, path in paths.items():
        faults += _bundle_faults(path.parent, stage, records.get(path, {}).get("inputs", {}).get("data"), hashes)
    for path in profiles:
        faults += [odd[path]] if path in odd else _profile_faults(path, records[path], hashes)
    faults += [fault for stage in stages if stage not in paths for fault in _unrecorded(run_dir / stage)]
    faults += _apart(run_dir, {stage: records[path] for stage, path in paths.items() if path in records})
    return Lineage(len(hashes), [str(fault) for fault in faults])


def outputs_of(folder: Path) -> dict[str, str]:
    """Hashes of what a training leaves beside its record."""
    return {path.name: sha256_of(path) for name in (WEIGHTS, CURVES, PICTURES) for path in sorted(folder.glob(name))}


def require_recorded(folder: Path, name: str) -> str:
    """Give the sha256 of `folder/name`; UserError where it is not the one that `folder/record.json` recorded."""
    vouched = recorded(folder / "record.json", "outputs")["outputs"].get(name)
    if not (folder / name).is_file():
        told = f"{folder / name}: not there, though {folder / 'record.json'} is: delete that and run its stage again"
        raise UserError("E_RUN_CHANGED", told)
    found = sha256_of(folder / name)
    if found != vouched:
        raise UserError(
            "E_RUN_CHANGED", f"{folder / name}: {_CHANGED}: delete {folder / 'record.json'} and run its stage again"
        )
    return found


def is_trained_anew(manifest: Json, record: Json | None) -> bool:
    """Whether the role's record names other weights than its bundle was made of; not where one of them names none."""
    exported, trained = manifest["lineage"].get("weights"), (record or {}).get("outputs", {}).get(WEIGHTS)
    return bool(exported and trained and exported != trained)


def require_same_data(path: Path, found: str) -> str:
    """Give `found`, the hash of the data as they are now; UserError where the record at `path` was trained on others.

    A record that does not say which passes: older ones, and those made by hand.
    """
    trained_on = recorded(path).get("inputs", {}).get("data", found)
    if trained_on != found:
        told = f"{path}: trained on data {trained_on[:12]}, what is read now is {found[:12]}"
        why = "images, classes or their split changed, or another Pillow decodes them"
        raise UserError("E_RUN_CHANGED", f"{told}: {why}: put the data back, or delete the record and train again")
    return found


_CHANGED = "its bytes are not those that were recorded"


def _files(run_dir: Path) -> Iterator[Path]:
    """What records vouch for: weights, pictures, bundles, profiles, and each other. Reports are made from them."""
    results = ("*/*.safetensors", "*/record.json", f"*/{PICTURES}", f"*/{CURVES}", "*/bundle/*")
    for pattern in (*results, "profiles/*/[!.]*.json", "profiles/*/[!.]*.npz"):
        yield from (path for path in sorted(run_dir.glob(pattern)) if path.is_file())


def _read(paths: Sequence[Path]) -> tuple[dict[Path, Json], dict[Path, UserError]]:
    """The records by their paths, and what is odd about those that cannot be read as such."""
    records: dict[Path, Json] = {}
    odd: dict[Path, UserError] = {}
    for path in paths:
        try:
            records[path] = recorded(path, "inputs", "outputs")
        except UserError as error:
            odd[path] = error
    return records, odd


def _stage_faults(path: Path, stage: str, record: Json, hashes: Mapping[Path, str]) -> Iterator[UserError]:
    if record.get("role", stage) != stage:
        yield _fault(f"{path}: the record of {record['role']} lies in the folder of {stage}")
    yield from _changed(path, record["outputs"], hashes)
    pictures = sorted(path.parent.glob(PICTURES))
    if any(picture.name in record["outputs"] for picture in pictures):  # older records name none
        for picture in (one for one in pictures if one.name not in record["outputs"]):
            yield _fault(f"{picture}: not one of those that {path.name} names: delete it, or run its stage again")
    inputs, run_dir = record["inputs"], path.parents[1]
    if stage in ("prompts", "student") and "teacher" not in inputs:
        yield _fault(f"{path}: does not say from which teacher it was made: run the stage again")
    for kind in _FEEDS:
        if kind in inputs and inputs[kind] != hashes.get(run_dir / kind / WEIGHTS):
            told = f"made from {kind} {inputs[kind][:12]}, which is not what lies there"
            yield _fault(f"{path}: {told}: run the stage again")


def _unrecorded(folder: Path) -> Iterator[UserError]:
    """Results of a stage without the record that vouches for them."""
    for name in (WEIGHTS, "bundle/manifest.json"):
        if (folder / name).exists():
            told = f"{folder / name}: there is no {folder / 'record.json'} {UNRECORDED}"
            yield _fault(f"{told}: run its stage again")


def _apart(run_dir: Path, records: Mapping[str, Json]) -> Iterator[UserError]:
    """What the stages of a run have in common, and these have not: the images; the two students all but a teacher."""
    seen: dict[str, list[str]] = {}
    for stage, record in records.items():
        seen.setdefault(str(record["inputs"].get("data"))[:12], []).append(stage)
    if len(seen) > 1:
        told = " and ".join(f"{', '.join(stages)} on {data}" for data, stages in seen.items())
        yield _fault(f"{run_dir}: stages saw different data: {told}: run them again")
    if {"student", "undistilled"} <= records.keys():  # the others are tied by hashes
        pair = records["student"], records["undistilled"]
        for key in ("arch", "seed", "epochs"):
            ours, control = (record.get(key) for record in pair)
            if ours != control:
                told = f"{key} of the student is {ours} and of undistilled, its control, {control}"
                yield _fault(f"{run_dir}: {told}: run them again")


def _fault(line: str) -> UserError:
    return UserError("E_RUN_CHANGED", line)


def _bundle_faults(folder: Path, stage: str, data: str | None, hashes: Mapping[Path, str]) -> Iterator[UserError]:
    from export.sealed import verify_bundle

    bundle = folder / "bundle"
    if not bundle.is_dir() or not any(bundle.iterdir()):  # Snakemake makes the folder before anything is exported
        return
    if not (bundle / "manifest.json").exists():
        yield _fault(f"{bundle}: there is no manifest.json {UNRECORDED}: export it again")
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
    judged_on = manifest["lineage"].get("data", data)
    if data is not None and judged_on != data:
        told = f"exported with data {str(judged_on)[:12]}, its network was trained on {data[:12]}"
        yield _fault(f"{bundle}: {told}: export it again")


def _profile_faults(path: Path, record: Json, hashes: Mapping[Path, str]) -> Iterator[UserError]:
    """Its name says what it is of: role, precision and device are those of the record, which names what it measured."""
    own = Path(str(record.get("device")), f"{record.get('role')}-{record.get('precision')}.json")
    if own != path.relative_to(path.parents[1]):
        yield _fault(f"{path}: the record of {own}: measure it again")
    yield from _changed(path, record["outputs"], hashes)
    bundle, inputs = path.parents[2] / str(record.get("role")) / "bundle", record["inputs"]
    if "manifest.json" not in inputs or not any(name.endswith(".onnx") for name in inputs):
        yield _fault(f"{path}: does not say which file of {bundle} it measured: measure it again")
    for name, made_from in inputs.items():
        if hashes.get(bundle / name) != made_from:
            yield _fault(f"{path}: measured on another {bundle / name}: measure it again")


def _changed(path: Path, outputs: Json, hashes: Mapping[Path, str]) -> Iterator[UserError]:
    """Outputs that are missing or have other bytes than the record at `path` says; a record without any is one."""
    if not outputs:
        yield _fault(f"{path}: names no outputs: run its stage again")
    for name, vouched in outputs.items():
        found = hashes.get(path.parent / name)
        if found != vouched:
            yield _fault(f"{path.parent / name}: {_CHANGED if found else 'missing'}: run its stage again")
