"""USPS (Hull 1994): 7,291 train and 2,007 test digits, 16x16 grey, as Hastie, Tibshirani and Friedman publish them.

AFPKD_DATA/usps/zip.{train,test}.gz: a digit a line: its class, then 256 values from -1 (paper) to 1 (ink).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from afpkd.data.dataset import Dataset, DatasetSpec, Split
from afpkd.errors import UserError

FOLDER = "usps"
HOW_TO_GET = "put zip.train.gz and zip.test.gz of https://hastie.su.domains/ElemStatLearn there, or set AFPKD_DATA"


def _load(root: Path) -> Dataset:
    train, test = (_split(root / FOLDER / f"zip.{name}.gz") for name in ("train", "test"))
    return Dataset(train, test, [str(digit) for digit in range(10)])


USPS = DatasetSpec(
    num_classes=10,
    in_channels=1,
    image_size=(16, 16),
    num_train=7291,
    load=_load,
    place=Path(FOLDER),
    how_to_get=HOW_TO_GET,
)


def _split(path: Path) -> Split:
    if not path.is_file():
        raise UserError("E_DATA_MISSING", f"USPS is not at {path}: {HOW_TO_GET}")
    rows = np.loadtxt(path, dtype=np.float32, ndmin=2)
    if rows.shape[1] != 257 or not np.isin(rows[:, 0], range(10)).all():
        raise UserError("E_DATA_BROKEN", f"{path}: a class and 256 values a line were expected: {HOW_TO_GET}")
    pixels = np.rint((rows[:, 1:].clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return Split(pixels.reshape(-1, 1, 16, 16), rows[:, 0].astype(np.int64))
