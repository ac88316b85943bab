"""Is a bundle what its manifest says, to the byte? Nothing is loaded before that is known; no torch, no pickle."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from afpkd.errors import UserError
from afpkd.record import Json, sha256_of
from export.bundle import MANIFEST, read_manifest

MAX_MANIFEST_BYTES = 16 << 20
"""A manifest holds numbers and names; a larger one is meant to fill the memory of who reads it."""

_HEADER_BYTES = 4096
"""numpy's own headers of plain arrays take 128."""

_MAX_TEXT_BYTES = 1 << 30
"""Of what the manifest gives no size: the names of classes, a detector's boxes."""

Arrays = dict[str, tuple[str, tuple[int, ...]]]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def verify_bundle(bundle_dir: Path) -> Json:
    """Check every byte of a bundle against its manifest, and give the manifest.

    UserError names the file: changed, missing, unlisted, a link, at a path that leaves the folder, or an array whose
    header is not the one the manifest describes. Arrays are not loaded: their headers are read first.
    """
    manifest = _manifest(bundle_dir)
    _check_names(bundle_dir, manifest)
    _check_references(bundle_dir, manifest)
    _check_listed(bundle_dir, manifest["hashes"])
    _check_sizes(bundle_dir, manifest)
    for name in manifest["hashes"]:
        sealed_file(bundle_dir, name, manifest["hashes"])
    _check_arrays(bundle_dir, manifest)
    _check_labels(bundle_dir / manifest["labels"], manifest)
    return manifest


def _manifest(bundle_dir: Path) -> Json:
    """Read the manifest, small and no link."""
    path = bundle_dir / MANIFEST
    if path.is_symlink():
        raise UserError("E_BUNDLE_UNTRUSTED", f"{path}: is a link: do not trust this bundle")
    if path.exists() and not path.is_file():
        raise UserError("E_BUNDLE_UNTRUSTED", f"{path}: is no file: do not trust this bundle")
    if path.is_file() and path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(
            "E_BUNDLE_UNTRUSTED",
            f"{path}: {path.stat().st_size:,} bytes, {MAX_MANIFEST_BYTES:,} at most: do not trust it",
        )
    return read_manifest(bundle_dir)


def _check_names(bundle_dir: Path, manifest: Json) -> None:
    """Every file lies in the folder itself, under a plain name."""
    for name in manifest["hashes"]:
        if not _NAME.fullmatch(name):
            raise UserError(
                "E_BUNDLE_UNTRUSTED",
                f"{bundle_dir / MANIFEST}: {name} leaves the bundle's folder: do not trust this bundle",
            )


def _check_references(bundle_dir: Path, manifest: Json) -> None:
    """Whatever the manifest names is hashed, and said the same of everywhere."""
    hashes, where = manifest["hashes"], bundle_dir / MANIFEST
    evaluation, golden = manifest["evaluation"], manifest["golden"]
    named = [manifest["labels"], golden["path"], evaluation["images"], evaluation["labels"]]
    for name in [*named, *(entry["path"] for entry in manifest["files"]), *manifest["verification"]]:
        if name not in hashes:
            raise UserError("E_BUNDLE", f"{where}: names {name} without its hash: export it again")
    for entry in manifest["files"]:
        if entry["sha256"] != hashes[entry["path"]]:
            raise UserError("E_BUNDLE", f"{where}: gives two hashes for {entry['path']}: export it again")
        if entry["path"] not in manifest["verification"]:
            raise UserError("E_BUNDLE", f"{where}: does not say how {entry['path']} was verified: export it again")


def _check_listed(bundle_dir: Path, hashes: dict[str, str]) -> None:
    for path in sorted(bundle_dir.rglob("*")):
        name = path.relative_to(bundle_dir).as_posix()
        if path.is_symlink():
            raise UserError("E_BUNDLE_UNTRUSTED", f"{path}: is a link: do not trust this bundle")
        if name != MANIFEST and name not in hashes:
            raise UserError("E_HASH", f"{path}: not listed in the manifest: delete it or export again")


def _check_sizes(bundle_dir: Path, manifest: Json) -> None:
    """No file is much larger than what the manifest says of it: hashing one of terabytes takes a day."""
    known = {entry["path"]: entry["size_bytes"] for entry in manifest["files"]}
    for name, arrays in _arrays(bundle_dir, manifest).items():
        sizes = [np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in arrays.values()]
        known[name] = sum(sizes) + 2 * len(sizes) * _HEADER_BYTES  # an archive's entries have headers of their own
    for name in manifest["hashes"]:
        path, most = bundle_dir / name, known.get(name, _MAX_TEXT_BYTES)
        if path.is_file() and path.stat().st_size > most:
            told = f"{path.stat().st_size:,} bytes, {most:,} at most by the manifest"
            raise UserError("E_HASH", f"{path}: {told}: its bytes are not those of the manifest: export it again")


def sealed_file(bundle_dir: Path, name: str, hashes: dict[str, str]) -> Path:
    """The path of a bundle's file. UserError where it is missing or other than the manifest's `hashes` say."""
    path = bundle_dir / name
    if not path.is_file():
        raise UserError("E_HASH", f"{path}: missing from the bundle: export it again")
    if sha256_of(path) != hashes.get(name):
        raise UserError("E_HASH", f"{path}: its bytes are not those of the manifest: export it again")
    return path


def _arrays(bundle_dir: Path, manifest: Json) -> dict[str, Arrays]:
    """File -> the arrays that the manifest describes in it, as type and shape; "" where the file is one array."""
    image, output = tuple(manifest["input"]["shape"][1:]), tuple(manifest["output"]["shape"][1:])
    evaluation, golden = manifest["evaluation"], manifest["golden"]
    num = golden["num"]
    if not all(isinstance(size, int) for size in (*image, *output)):
        told = f"malformed: the sizes {[*image, *output]} are open"
        raise UserError("E_BUNDLE", f"{bundle_dir / MANIFEST}: {told}: export it again")
    found: dict[str, Arrays] = {evaluation["images"]: {"": ("uint8", (evaluation["num"], *image))}}
    if manifest["task"] == "classification":
        found[evaluation["labels"]] = {"": ("int64", (evaluation["num"],))}
    found[golden["path"]] = {"images.npy": ("uint8", (num, *image)), "logits.npy": ("float32", (num, *output))}
    return found


def _check_arrays(bundle_dir: Path, manifest: Json) -> None:
    """The arrays are those the manifest describes: a header may promise any size, and any type."""
    for name, arrays in _arrays(bundle_dir, manifest).items():
        path = bundle_dir / name
        if "" not in arrays:
            _check_archive(path, arrays)
            continue
        dtype, shape = arrays[""]
        with path.open("rb") as file:
            _check_array(file, path.stat().st_size, np.dtype(dtype), shape, str(path))


def _check_archive(path: Path, wanted: Arrays) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive, wanted)
    except UserError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds: of encryption, of versions to come, of offsets
        raise UserError("E_BUNDLE", f"{path}: not an archive of arrays ({error}): export it again") from None


def _check_labels(path: Path, manifest: Json) -> None:
    """A line a class, and as many classes as the output has: a device looks a class's name up by its number."""
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError("E_BUNDLE_UNTRUSTED", f"{path}: {path.stat().st_size:,} bytes of names: do not trust it")
    try:
        num_names = len(path.read_text(encoding="utf-8").splitlines())
    except UnicodeError as error:
        raise UserError("E_BUNDLE", f"{path}: {error}: export it again") from None
    last = (manifest["output"]["shape"][1:] or [0])[-1]
    num_scores = last - (4 if manifest["task"] == "detection" else 0)
    if not num_names == num_scores == manifest["num_classes"]:
        told = f"{num_names} names, {num_scores} scores of the network and num_classes = {manifest['num_classes']}"
        raise UserError("E_BUNDLE", f"{path}: {told} are not one number: export it again")


def _check_members(path: Path, archive: zipfile.ZipFile, wanted: Arrays) -> None:
    found = {entry.filename: entry for entry in archive.infolist()}
    if len(archive.infolist()) != len(wanted) or found.keys() != wanted.keys():
        raise UserError(
            "E_BUNDLE_UNTRUSTED",
            f"{path}: holds {', '.join(sorted(found))}, expected {', '.join(wanted)}: do not trust it",
        )
    for name, (dtype, shape) in wanted.items():
        if found[name].compress_type != zipfile.ZIP_STORED:
            raise UserError(
                "E_BUNDLE_UNTRUSTED", f"{path}: {name} is compressed, which ours never are: do not trust it"
            )
        with archive.open(name) as file:
            _check_array(file, found[name].file_size, np.dtype(dtype), shape, f"{path}: {name}")


def _check_array(file: IO[bytes], size: int, dtype: np.dtype, shape: tuple[int, ...], what: str) -> None:
    """The header of an .npy names this type and shape, and the bytes that follow are as many."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        got_shape, fortran, got_dtype = read(file, max_header_size=_HEADER_BYTES)
    except Exception as error:  # numpy evaluates the header: Python's tokenizer and parser have errors of their own
        line = next(iter(str(error).splitlines()), "")
        raise UserError(
            "E_BUNDLE_UNTRUSTED", f"{what}: not a header of ours ({line}): do not trust this bundle"
        ) from None
    if (got_shape, fortran, got_dtype) != (shape, False, dtype):
        raise UserError(
            "E_BUNDLE_UNTRUSTED",
            f"{what}: {got_dtype} {got_shape}, the manifest says {dtype} {shape}: do not trust this bundle",
        )
    if size - file.tell() != math.prod(shape) * dtype.itemsize:
        raise UserError(
            "E_BUNDLE_UNTRUSTED", f"{what}: {size:,} bytes do not hold {dtype} {shape}: do not trust this bundle"
        )
