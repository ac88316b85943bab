"""A bundle is what travels: model files, golden inputs, labels, the evaluation set, and the manifest that closes it.

No torch: a measuring host reads, checks and writes bundles with numpy alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jsonschema
import numpy as np
from numpy.typing import NDArray

from afpkd.errors import UserError
from afpkd.names import require_lines
from afpkd.record import Json, provenance, read_record, sha256_of, write_record, write_text

SCHEMA = "afpkd.bundle/1"
MANIFEST = "manifest.json"
NUM_GOLDEN = 64

GOLDEN, LABELS, EVAL, EVAL_LABELS = "golden.npz", "labels.txt", "eval.npy", "eval_labels.npy"
EVAL_BOXES = "eval_boxes.json"
_KNOWN = {MANIFEST, GOLDEN, LABELS, EVAL, EVAL_LABELS, EVAL_BOXES}
_MODEL = re.compile(r"(fp32|fp16|int8)(-tensorrt|-legacy)?\.onnx")
"""The names that `export.files` gives."""
_SCHEMA = Path(__file__).with_name("manifest.schema.json")


class ModelFile(NamedTuple):
    """A finished model file for one runtime: one entry of the manifest's `files`, under its own name.

    A file that two runtimes load has two entries. facts: what else its entry says.
    """

    path: Path
    precision: str
    opset: int
    runtime: str = "any"
    min_version: str | None = None
    max_version: str | None = None
    facts: Json = {}  # noqa: RUF012  # never written to


class Golden(NamedTuple):
    """Images uint8 N, C, H, W; the logits float32 N, K torch gives them, of a detector its raw output N, A, 4 + K; how
    far each precision may stray."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    tolerances: dict[str, Json]


class Evaluation(NamedTuple):
    """The whole test set: images uint8 N, C, H, W; labels int64 N, of a detector the boxes as a COCO document, whose
    images are in the same order; the name of each class."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | Json
    label_names: Sequence[str]


def read_manifest(bundle_dir: Path) -> Json:
    """Read a bundle's manifest; UserError where it is missing, broken, of another schema or not as its own has it."""
    path = bundle_dir / MANIFEST
    manifest = read_record(path)
    if manifest.get("schema") != SCHEMA:
        raise UserError("E_BUNDLE", f"{path}: schema {manifest.get('schema')!r}, expected {SCHEMA!r}: export it again")
    error = jsonschema.exceptions.best_match(_validator().iter_errors(manifest))
    if error is not None:
        where = ".".join(map(str, error.absolute_path)) or "it"
        raise UserError("E_BUNDLE", f"{path}: malformed: {where}: {error.message[:200]}: export it again")
    return manifest


@cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(_SCHEMA.read_text(encoding="utf-8")))


def preprocess(images: NDArray[np.uint8], rule: Json) -> NDArray[np.float32]:
    """Turn pixels (uint8 N, C, H, W) into the network's input: (pixels * scale - mean) / std.

    rule: the manifest's `preprocessing`.
    """
    if rule["layout"] != "NCHW":
        raise UserError("E_BUNDLE", f"preprocessing layout {rule['layout']!r}: only NCHW is known")
    if images.ndim != 4 or not images.shape[1] == len(rule["mean"]) == len(rule["std"]):
        raise UserError(
            "E_BUNDLE",
            f"images of shape {images.shape} with mean {rule['mean']} and std {rule['std']}: "
            "expected N, C, H, W and one mean and std a channel",
        )
    mean, std = (np.asarray(rule[name], dtype=np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))
    return (images.astype(np.float32) * np.float32(rule["scale"]) - mean) / std


def golden_indices(images: NDArray[np.uint8], num: int = NUM_GOLDEN) -> NDArray[np.int64]:
    """Choose `num` distinct images, spread evenly over the set, always the same; all of them where there are fewer."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        first.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
    distinct = np.fromiter(first.values(), dtype=np.int64)
    return distinct[np.linspace(0, len(distinct) - 1, min(num, len(distinct))).round().astype(np.int64)]


def require_place(out: Path) -> None:
    """What stands at `out` will be replaced: never a folder that holds anything but a bundle's files.

    Nor the present one: a shell that stands in it would see an empty folder from then on.
    """
    if out.exists() and not out.is_dir():
        raise UserError("E_OUT", f"{out}: is a file: name a folder for the bundle")
    if out.exists() and out.samefile(Path()):
        raise UserError("E_OUT", f"{out}: the folder you are in would be replaced: name another, such as bundle")
    is_bundle = (out / GOLDEN).exists()  # a manifest it has not where it is outdated
    for path in sorted(out.iterdir()) if out.exists() else ():
        if path.name not in _KNOWN and not (is_bundle and _MODEL.fullmatch(path.name)):  # else somebody's models
            raise UserError(
                "E_OUT", f"{path}: no part of a bundle, and would be lost: name another folder or move it away"
            )


def write_bundle(out: Path, *, facts: Json, files: Sequence[ModelFile], golden: Golden, evaluation: Evaluation) -> Json:
    """Write a whole bundle in place of the one at `out`, and give its manifest.

    facts: what the manifest says beyond the files (`manifest.schema.json` names it all). The bundle is built beside
    `out`, manifest last, and swapped in: half a bundle is never found under `out`, nor a file of an older one.
    UserError where `out` holds what no bundle has, or a class's name is no line.
    """
    require_place(out)
    require_lines("E_BUNDLE", out, evaluation.label_names)
    with _replacing(out.resolve()) as folder:
        for path in {file.path for file in files}:
            shutil.copyfile(path, folder / path.name)
        np.savez(folder / GOLDEN, images=golden.images, logits=golden.logits)
        np.save(folder / EVAL, evaluation.images, allow_pickle=False)
        if isinstance(evaluation.labels, dict):
            write_text(folder / EVAL_BOXES, json.dumps(evaluation.labels, allow_nan=False))
        else:
            np.save(folder / EVAL_LABELS, evaluation.labels, allow_pickle=False)
        write_text(folder / LABELS, "".join(f"{name}\n" for name in evaluation.label_names))
        manifest = _manifest(folder, facts, files, golden, evaluation)
        write_record(folder / MANIFEST, manifest)
    return manifest


def _manifest(folder: Path, facts: Json, files: Sequence[ModelFile], golden: Golden, evaluation: Evaluation) -> Json:
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    task, name, truth = (
        ("detection", "detections", EVAL_BOXES)
        if isinstance(evaluation.labels, dict)
        else ("classification", "logits", EVAL_LABELS)
    )
    return {
        "schema": SCHEMA,
        **facts,
        "task": task,
        "num_classes": len(evaluation.label_names),
        "input": {"name": "input", "shape": ["batch", *golden.images.shape[1:]], "dtype": "float32"},
        "output": {"name": name, "shape": ["batch", *golden.logits.shape[1:]], "dtype": "float32"},
        "files": [_file_entry(file, hashes[file.path.name]) for file in files],
        "golden": {"path": GOLDEN, "num": len(golden.images), "tolerances": golden.tolerances},
        "labels": LABELS,
        "evaluation": {"images": EVAL, "labels": truth, "num": len(evaluation.images)},
        "hashes": hashes,
        **provenance(),
    }


def _file_entry(file: ModelFile, sha256: str) -> Json:
    found = file._asdict()
    facts = found.pop("facts")
    return {**found, "path": file.path.name, "sha256": sha256, "size_bytes": file.path.stat().st_size, **facts}


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
