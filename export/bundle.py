"""A bundle is what travels: model files, golden inputs, labels, the evaluation set, and the manifest that closes it.

No torch: a measuring host reads, checks and writes bundles with numpy alone.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json, UserError, provenance, read_record, sha256_of, write_record, write_text

SCHEMA = "afpkd.bundle/1"
MANIFEST = "manifest.json"
NUM_GOLDEN = 64

_GOLDEN, _LABELS, _EVAL, _EVAL_LABELS = "golden.npz", "labels.txt", "eval.npy", "eval_labels.npy"
_HOST_RUNTIMES = ("any", "onnxruntime")


class ModelFile(NamedTuple):
    """A finished model file and what can run it: one entry of the manifest's `files`, under its own name."""

    path: Path
    precision: str
    opset: int
    runtime: str = "any"
    min_version: str | None = None
    max_version: str | None = None


class Golden(NamedTuple):
    """Images uint8 N, C, H, W; the logits float32 N, K torch gives them; how far each precision may stray."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    tolerances: dict[str, Json]


class Evaluation(NamedTuple):
    """The whole test set: images uint8 N, C, H, W; labels int64 N; the name of each class."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    label_names: Sequence[str]


def read_manifest(bundle_dir: Path) -> Json:
    """Read a bundle's manifest; UserError where it is missing, broken or of another schema."""
    path = bundle_dir / MANIFEST
    manifest = read_record(path)
    if manifest.get("schema") != SCHEMA:
        raise UserError(f"{path}: schema {manifest.get('schema')!r}, expected {SCHEMA!r}: export it again")
    return manifest


def file_for(manifest: Json, precision: str) -> Json:
    """Give the entry of the file of `precision` that ONNX Runtime can load; UserError names what there is."""
    entries: list[Json] = [entry for entry in manifest["files"] if entry["runtime"] in _HOST_RUNTIMES]
    for entry in entries:
        if entry["precision"] == precision:
            return entry
    known = ", ".join(entry["precision"] for entry in entries) or "none"
    raise UserError(f"the bundle has no {precision} file (it has: {known}): add it to the recipe's export")


def preprocess(images: NDArray[np.uint8], manifest: Json) -> NDArray[np.float32]:
    """Turn pixels (uint8 N, C, H, W) into the network's input as the manifest says: (pixels * scale - mean) / std."""
    rule = manifest["preprocessing"]
    if rule["layout"] != "NCHW":
        raise UserError(f"preprocessing layout {rule['layout']!r}: only NCHW is known")
    if images.ndim != 4 or not images.shape[1] == len(rule["mean"]) == len(rule["std"]):
        raise UserError(
            f"images of shape {images.shape} with mean {rule['mean']} and std {rule['std']}: "
            "expected N, C, H, W and one mean and std a channel"
        )
    mean, std = (np.asarray(rule[name], dtype=np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))
    return (images.astype(np.float32) * np.float32(rule["scale"]) - mean) / std


def verify_bundle(bundle_dir: Path) -> Json:
    """Check every byte of a bundle against its manifest, and give the manifest.

    UserError names the file: changed, missing, unlisted, or at a path that leaves the folder.
    """
    manifest = read_manifest(bundle_dir)
    try:
        _check_references(bundle_dir, manifest)
        _check_hashes(bundle_dir, manifest["hashes"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{bundle_dir / MANIFEST}: malformed ({error!r}): export it again") from None
    return manifest


def golden_indices(images: NDArray[np.uint8], num: int = NUM_GOLDEN) -> NDArray[np.int64]:
    """Choose `num` distinct images, spread evenly over the set, always the same; all of them where there are fewer."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        first.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
    distinct = np.fromiter(first.values(), dtype=np.int64)
    return distinct[np.linspace(0, len(distinct) - 1, min(num, len(distinct))).round().astype(np.int64)]


def write_bundle(out: Path, *, facts: Json, files: Sequence[ModelFile], golden: Golden, evaluation: Evaluation) -> Json:
    """Write a whole bundle in place of the one at `out`, and give its manifest.

    facts: what the manifest says beyond the files (role, arch, num_params, macs, preprocessing, verification,
    torch_top1, lineage). The bundle is built beside `out`, manifest last, and swapped in: half a bundle is never found
    under `out`, nor a file of an older one. UserError where `out` holds what no bundle has.
    """
    _refuse_other_files(out)
    with _replacing(out) as folder:
        for file in files:
            shutil.copyfile(file.path, folder / file.path.name)
        np.savez(folder / _GOLDEN, images=golden.images, logits=golden.logits)
        np.save(folder / _EVAL, evaluation.images, allow_pickle=False)
        np.save(folder / _EVAL_LABELS, evaluation.labels, allow_pickle=False)
        write_text(folder / _LABELS, "".join(f"{name}\n" for name in evaluation.label_names))
        manifest = _manifest(folder, facts, files, golden, evaluation)
        write_record(folder / MANIFEST, manifest)
    return manifest


def _manifest(folder: Path, facts: Json, files: Sequence[ModelFile], golden: Golden, evaluation: Evaluation) -> Json:
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    num_classes = golden.logits.shape[1]
    return {
        "schema": SCHEMA,
        **facts,
        "task": "classification",
        "num_classes": num_classes,
        "input": {"name": "input", "shape": ["batch", *golden.images.shape[1:]], "dtype": "float32"},
        "output": {"name": "logits", "shape": ["batch", num_classes], "dtype": "float32"},
        "files": [_file_entry(file, hashes[file.path.name]) for file in files],
        "golden": {"path": _GOLDEN, "num": len(golden.images), "tolerances": golden.tolerances},
        "labels": _LABELS,
        "evaluation": {"images": _EVAL, "labels": _EVAL_LABELS, "num": len(evaluation.images)},
        "hashes": hashes,
        **provenance(),
    }


def _file_entry(file: ModelFile, sha256: str) -> Json:
    return {**file._asdict(), "path": file.path.name, "sha256": sha256, "size_bytes": file.path.stat().st_size}


def _refuse_other_files(out: Path) -> None:
    """What stands at `out` will be replaced: never a folder that holds anything but a bundle's files."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file: name a folder for the bundle")
    known = {MANIFEST, _GOLDEN, _LABELS, _EVAL, _EVAL_LABELS}
    for path in sorted(out.iterdir()) if out.exists() else ():
        if path.name not in known and path.suffix != ".onnx":
            raise UserError(f"{path}: no part of a bundle, and would be lost: name another folder or move it away")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out` that takes its place on success; on an error `out` stays as it was."""
    fresh, old = (out.with_name(f".{out.name}.{state}") for state in ("new", "old"))
    for leftover in (fresh, old):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh)
        raise
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _check_references(bundle_dir: Path, manifest: Json) -> None:
    """Whatever the manifest names is hashed, and said the same of everywhere."""
    hashes, where = manifest["hashes"], bundle_dir / MANIFEST
    evaluation, golden = manifest["evaluation"], manifest["golden"]
    named = [manifest["labels"], golden["path"], evaluation["images"], evaluation["labels"]]
    for name in [*named, *(entry["path"] for entry in manifest["files"])]:
        if name not in hashes:
            raise UserError(f"{where}: names {name} without its hash: export it again")
    for entry in manifest["files"]:
        if entry["sha256"] != hashes[entry["path"]]:
            raise UserError(f"{where}: gives two hashes for {entry['path']}: export it again")


def _check_hashes(bundle_dir: Path, hashes: dict[str, str]) -> None:
    root = bundle_dir.resolve()
    for name, sha256 in hashes.items():
        path = bundle_dir / name
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{bundle_dir / MANIFEST}: {name} leaves the bundle's folder: do not trust this bundle")
        if not path.is_file():
            raise UserError(f"{path}: missing from the bundle: export it again")
        if sha256_of(path) != sha256:
            raise UserError(f"{path}: its bytes are not those of the manifest: export it again")
    for path in sorted(bundle_dir.rglob("*")):
        name = path.relative_to(bundle_dir).as_posix()
        if not path.is_dir() and name != MANIFEST and name not in hashes:
            raise UserError(f"{path}: not listed in the manifest: delete it or export again")
