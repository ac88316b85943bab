"""Your own images: folders of photos, one a class, as a data set.

PATH/<class>/*.jpg, split at random (the same every time), or PATH/{train,val,test}/<class>/*.jpg, split as you say.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afpkd.data.dataset import Dataset, DatasetSpec, Split
from afpkd.data.decoded import Decoded, decode, file_hashes
from afpkd.data.folder import class_names, has_images, listed, not_read, of_no_class
from afpkd.errors import UserError
from afpkd.record import digest

Listed = list[tuple[Path, int]]
"""(file, class) of each image."""


_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What folders of splits are called."""


class Layout(NamedTuple):
    """Which images are for what. train, val, test: folders below `path`; without `train` all images lie in `path`, and
    `test_share` of each class is set aside for test, drawn with `split_seed`."""

    path: Path
    train: str | None
    val: str | None
    test: str | None
    test_share: float
    split_seed: int


def folder_spec(layout: Layout, *, image_size: tuple[int, int], channels: int) -> DatasetSpec:
    """What is known without decoding. UserError: no classes, an empty one, one in test or val that train has not."""
    names, splits = _splits(layout)
    load = partial(_load, layout, image_size, channels)
    return DatasetSpec(len(names), channels, image_size, len(splits["train"]), lambda _root: load())


def folder_content(layout: Layout) -> str:
    """Hash every image file's name and content, and how they are split: changed images are another data set."""
    _, splits = _splits(layout)
    hashes = file_hashes(layout.path, [path for files in splits.values() for path, _ in files])
    names = {split: [str(path.relative_to(layout.path)) for path, _ in files] for split, files in splits.items()}
    return digest([hashes, names])


def _load(layout: Layout, size: tuple[int, int], channels: int) -> Dataset:
    names, splits = _splits(layout)
    files = [file for split in splits.values() for file in split]
    found = decode(layout.path, [path for path, _ in files], size=size, channels=channels)
    ends = np.cumsum([len(split) for split in splits.values()])
    parts = {
        name: _part(found, files, end - len(splits[name]), end) for name, end in zip(splits, ends.tolist(), strict=True)
    }
    notes = [*(f"left out, unreadable: {cause}" for cause in found.unreadable), *_others(layout)]
    notes += _shared(layout, splits)
    return Dataset(parts["train"], parts["test"], names, parts.get("val"), tuple(notes))


def _part(found: Decoded, files: Listed, start: int, end: int) -> Split:
    """The readable images whose place in the list is start..end."""
    first, last = np.searchsorted(found.ids, [start, end])
    labels = [files[index][1] for index in found.ids[first:last]]
    return Split(found.images[first:last], np.asarray(labels, dtype=np.int64))


def _others(layout: Layout) -> list[str]:
    """Notes on what lies in the folder of a split and is not read."""
    roots = [layout.path / split for split in (layout.train, layout.val, layout.test) if split is not None]
    return [
        note
        for root in roots or [layout.path]
        for note in (*not_read(root / name for name in class_names(root)), *of_no_class(root))
    ]


def _shared(layout: Layout, splits: dict[str, Listed]) -> list[str]:
    """A note where files of test or val are files of train, or of each other: their accuracy flatters."""
    hashes = file_hashes(layout.path, [path for files in splits.values() for path, _ in files])
    of = {name: [hashes[str(path.relative_to(layout.path))] for path, _ in files] for name, files in splits.items()}
    sets, notes = {name: set(found) for name, found in of.items()}, []
    for name, other, known in (("test", "train", "training"), ("val", "train", "training"), ("test", "val", "val")):
        num = sum(found in sets.get(other, ()) for found in of.get(name, ()))
        if num:
            notes.append(f"{num} of {len(of[name])} {name} images are also {known} images: their accuracy flatters")
    return notes


def _splits(layout: Layout) -> tuple[list[str], dict[str, Listed]]:
    """Names of the classes, and the files of `train`, `test` and, where there is a folder for it, `val`."""
    _require_below(layout)
    if layout.train is None:
        _require_no_splits(layout.path)
        names, files = listed(layout.path)
        _require_two(layout.path, names)
        train, test = _drawn(layout, names, files)
        return names, {"train": train, "test": test}
    names, train = listed(layout.path / layout.train)
    _require_two(layout.path / layout.train, names)
    splits = {"train": train}
    for split, folder in (("test", layout.test), ("val", layout.val)):
        if folder is not None:
            splits[split] = _of_same_classes(layout.path / folder, names)
    return names, splits


def _require_no_splits(path: Path) -> None:
    """UserError where the folders in `path` are splits, each with folders of classes: they would be trained as classes.

    A folder that holds images itself is a class, whatever it is called.
    """
    names = class_names(path)
    splits = {_SPLITS[name.lower()]: name for name in names if name.lower() in _SPLITS and not has_images(path / name)}
    if len(splits) < min(2, len(names)):
        return
    train, val, test = (splits.get(split) for split in ("train", "val", "test"))
    keys = {"train": train, "val": val, "test": test} if test else {"train": train, "test": val}
    told = ", ".join(f'data.{key} = "{name}"' for key, name in keys.items() if name)
    mend = f"set {told}" if train and (test or val) else "let data.path be the folder in which the classes lie"
    found = ", ".join(sorted(splits.values()))
    raise UserError("E_DATA_FOLDER", f"{path}: its folders ({found}) are splits, no classes: {mend}")


def _require_two(folder: Path, names: list[str]) -> None:
    if len(names) < 2:
        told = f"{folder}: one folder, '{names[0]}', and so one class, which leaves nothing to tell apart"
        raise UserError("E_DATA_FOLDER", f"{told}: name the folder that holds a folder per class")


def _require_below(layout: Layout) -> None:
    """UserError where a folder lies elsewhere: images are known by where they lie below `path`."""
    for key in ("train", "val", "test"):
        folder = layout.path / (getattr(layout, key) or "")
        if not folder.is_relative_to(layout.path):
            told = f"data.{key} = '{folder}' does not lie below data.path = '{layout.path}'"
            raise UserError("E_RECIPE_VALUE", f"{told}: let path be the folder of both, and name {key} relative to it")


def _drawn(layout: Layout, names: list[str], files: Listed) -> tuple[Listed, Listed]:
    """Set `test_share` of each class aside, one image at least."""
    generator = np.random.Generator(np.random.PCG64(layout.split_seed))
    numbers = Counter(label for _, label in files)
    chosen: set[Path] = set()
    for label, name in enumerate(names):
        own = [path for path, found in files if found == label]
        if len(own) < 2:
            raise UserError(
                "E_DATA_LITTLE", f"{layout.path / name}: one image: two at least, one to train on and one to test with"
            )
        num = min(max(round(layout.test_share * numbers[label]), 1), len(own) - 1)
        chosen |= {own[index] for index in generator.choice(len(own), size=num, replace=False)}
    return [file for file in files if file[0] not in chosen], [file for file in files if file[0] in chosen]


def _of_same_classes(folder: Path, names: list[str]) -> Listed:
    found, files = listed(folder)
    strange = sorted(set(found) - set(names))
    if strange:
        raise UserError(
            "E_DATA_CLASSES", f"{folder / strange[0]}: train has no class of this name (it has: {', '.join(names[:8])})"
        )
    return [(path, names.index(found[label])) for path, label in files]
