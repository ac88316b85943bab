"""CIFAR-100 (Krizhevsky 2009) in the official *binary* layout: `cifar-100-binary/{train,test}.bin`, no pickle.

A record is 3,074 bytes: coarse label, fine label, 3 x 32 x 32 pixels. Read from AFPKD_DATA; where it is missing, the
official archive is downloaded there and checked.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from afpkd.data.dataset import Dataset, DatasetSpec, Split
from afpkd.errors import UserError
from afpkd.record import atomic_path

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
MD5 = "03b5dce01913d631647c71ecec9e9cb8"  # published beside the archive on https://www.cs.toronto.edu/~kriz/cifar.html
FOLDER = "cifar-100-binary"
_RECORD_BYTES = 2 + 3 * 32 * 32
_NUM_RECORDS = {"train": 50_000, "test": 10_000}
_LABEL_FILE = "fine_label_names.txt"


def _load(root: Path) -> Dataset:
    folder = root / FOLDER
    if not all((folder / name).exists() for name in ("train.bin", "test.bin", _LABEL_FILE)):
        _download(root)
    names = (folder / _LABEL_FILE).read_text(encoding="utf-8").split()
    return Dataset(_split(folder, "train"), _split(folder, "test"), names)


CIFAR100 = DatasetSpec(
    num_classes=100,
    in_channels=3,
    image_size=(32, 32),
    num_train=50_000,
    load=_load,
    place=Path(FOLDER),
    how_to_get=f"it is downloaded when first needed; offline: unpack {URL} there, or set AFPKD_DATA",
)


def _split(folder: Path, name: str) -> Split:
    path = folder / f"{name}.bin"
    size = path.stat().st_size
    expected = _NUM_RECORDS[name] * _RECORD_BYTES
    if size != expected:
        raise UserError(
            "E_DATA_BROKEN",
            f"{path}: {size} bytes where {expected} were expected: delete {folder} to download it again",
        )
    records = np.fromfile(path, np.uint8).reshape(-1, _RECORD_BYTES)
    return Split(records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1].astype(np.int64))


def _download(root: Path) -> None:
    """Fetch and unpack; every file appears whole, so stages that start side by side do not disturb each other."""
    archive = root / "cifar-100-binary.tar.gz"
    if not archive.exists():
        sys.stderr.write(f"downloading {URL} (161 MB) to {root}\n")
        _fetch(archive)
    _check(archive)
    with tarfile.open(archive) as tar:  # file by file: `extractall` has no filter before Python 3.11.4
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                with atomic_path(root / FOLDER / Path(member.name).name) as part:
                    part.write_bytes(file.read())


def _fetch(archive: Path) -> None:
    try:
        with atomic_path(archive) as part, urllib.request.urlopen(URL, timeout=60) as reply, part.open("wb") as file:
            while chunk := reply.read(1 << 20):
                file.write(chunk)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            "E_DATA_MISSING",
            f"CIFAR-100 is not in {archive.parent / FOLDER} and {URL} cannot be reached ({error}): "
            f"set AFPKD_DATA to the folder that holds {FOLDER}/, or put the archive at {archive}",
        ) from None


def _check(archive: Path) -> None:
    with archive.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != MD5:
        raise UserError(
            "E_DATA_BROKEN", f"{archive}: MD5 {md5} is not the official {MD5}: delete the file to download it again"
        )
