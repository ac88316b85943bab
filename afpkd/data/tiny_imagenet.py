"""Tiny-ImageNet (Stanford CS231n): 200 classes, 64x64 pixels, 500 train and 50 val images each, in the official layout.

AFPKD_DATA/tiny-imagenet-200/{wnids.txt,words.txt,train/<wnid>/images/*.JPEG,val/images/*.JPEG,val/val_annotations.txt}

Its test images have no public labels: as in the literature, `val` is our test set, with the labels of its annotation
file. Nothing is moved or rewritten there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from afpkd.data.dataset import Dataset, DatasetSpec, Split
from afpkd.data.decoded import Decoded, decode
from afpkd.errors import UserError

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SIZE = (64, 64)
_ANEW = f"unpack {URL} anew"


def _load(root: Path) -> Dataset:
    folder = root / FOLDER
    if not (folder / "wnids.txt").is_file():
        raise UserError("E_DATA_MISSING", f"Tiny-ImageNet is not in {folder}: unpack {URL} there, or set AFPKD_DATA")
    wnids, names = sorted(" ".join(_lines(folder / "wnids.txt")).split()), _words(folder / "words.txt")
    train = [(path, label) for label, wnid in enumerate(wnids) for path in _images(folder / "train" / wnid / "images")]
    test = _annotated(folder / "val", wnids)
    found = decode(folder, [path for path, _ in train + test], size=SIZE, channels=3)
    labels = np.asarray([label for _, label in train + test], dtype=np.int64)[found.ids]
    first = int(np.searchsorted(found.ids, len(train)))
    notes = tuple(f"left out, unreadable: {cause}" for cause in found.unreadable)
    splits = (_split(found, labels, slice(0, first)), _split(found, labels, slice(first, None)))
    return Dataset(*splits, _names(names, wnids), notes=notes)


TINY_IMAGENET = DatasetSpec(
    num_classes=200,
    in_channels=3,
    image_size=SIZE,
    num_train=100_000,
    load=_load,
    place=Path(FOLDER),
    how_to_get=f"unpack {URL} there, or set AFPKD_DATA",
)


def _split(found: Decoded, labels: np.ndarray[tuple[int], np.dtype[np.int64]], part: slice) -> Split:
    return Split(found.images[part], labels[part])


def _images(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.JPEG"))
    if not files:
        raise UserError("E_DATA_BROKEN", f"{folder}: no images (*.JPEG): {_ANEW}")
    return files


def _annotated(val: Path, wnids: list[str]) -> list[tuple[Path, int]]:
    """(file, class) of each line of val_annotations.txt: name, wnid and a box, apart by tabs."""
    annotations, number = val / "val_annotations.txt", {wnid: label for label, wnid in enumerate(wnids)}
    found = []
    for at, line in enumerate(_lines(annotations), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in number or not (val / "images" / name).is_file():
            raise UserError(
                "E_DATA_BROKEN",
                f"{annotations}:{at}: '{line[:60]}' names no class of wnids.txt or no image: {_ANEW}",
            )
        found.append((val / "images" / name, number[wnid]))
    return found


def _words(path: Path) -> dict[str, str]:
    """The words of each wnid, apart by a tab."""
    found = {}
    for at, line in enumerate(_lines(path), 1):
        wnid, tab, words = line.partition("\t")
        if line.strip() and not tab:
            raise UserError("E_DATA_BROKEN", f"{path}:{at}: '{line[:60]}' has no tab between class and words: {_ANEW}")
        found[wnid] = words
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a file that says something."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or error
        raise UserError("E_DATA_BROKEN", f"{path}: {told}: {_ANEW}") from None
    if not "".join(lines).strip():
        raise UserError("E_DATA_BROKEN", f"{path}: is empty: {_ANEW}")
    return lines


def _names(words: dict[str, str], wnids: list[str]) -> list[str]:
    """The first word of each class; the wnid where there is none, or where two classes share it."""
    names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return [wnid if names.count(name) > 1 else name for wnid, name in zip(wnids, names, strict=True)]
