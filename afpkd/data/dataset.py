"""What a data set is to the rest of the program. numpy only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.record import expanded

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Split(NamedTuple):
    """images: uint8 N, C, H, W; labels: int64 N."""

    images: Images
    labels: Labels


class Dataset(NamedTuple):
    """A whole small data set in memory."""

    train: Split
    test: Split
    label_names: list[str]
    heldout: Split | None = None
    """Where the data set comes with images to choose on; else some of train are set aside (`hold_out`)."""
    notes: tuple[str, ...] = ()
    """What a person should know of it: files left out, images in two splits."""

    def sha256(self) -> str:
        """Hash every pixel and label: which data a record speaks of."""
        state = hashlib.sha256()
        for split in (self.train, self.test, *([self.heldout] if self.heldout else [])):
            state.update(split.images.tobytes())
            state.update(split.labels.tobytes())
        return state.hexdigest()


class DatasetSpec(NamedTuple):
    """What is known of a data set before it is read; `load(root)` reads it from under `AFPKD_DATA`."""

    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    num_train: int
    load: Callable[[Path], Dataset]
    place: Path = Path()
    """The file or folder that `load` reads, below `root` (or whole: shipped), for `afpkd doctor` to look for."""
    how_to_get: str = ""
    """What the doctor says where it is not there."""


def why_unfit(data: Dataset, spec: DatasetSpec) -> str:
    """Say what of a data set is not as `Split` and `DatasetSpec` promise, one line; empty where all is."""
    if len(data.label_names) != spec.num_classes:
        return f"it names {len(data.label_names)} classes, and says it has {spec.num_classes}"
    for part, split in (("train", data.train), ("held-out", data.heldout), ("test", data.test)):
        if split and (told := _why_unfit(split, spec)):
            return f"{part}: {told}"
    return ""


def _why_unfit(split: Split, spec: DatasetSpec) -> str:
    images, labels = split
    wanted = (len(labels), spec.in_channels, *spec.image_size)
    if images.dtype != np.uint8 or images.shape != wanted:
        return f"images are {images.dtype} {images.shape}, uint8 {wanted} are wanted"
    if labels.dtype != np.int64 or labels.ndim != 1:
        return f"labels are {labels.dtype} {labels.shape}, int64 ({len(labels)},) are wanted"
    if len(labels) and not 0 <= labels.min() <= labels.max() < spec.num_classes:
        return f"labels reach from {labels.min()} to {labels.max()}, and classes from 0 to {spec.num_classes - 1}"
    return ""


def data_root() -> Path:
    """The folder that holds the data sets: the environment variable AFPKD_DATA, else ~/.cache/afpkd."""
    return expanded(os.environ.get("AFPKD_DATA") or "~/.cache/afpkd")


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel / 255 of each channel of N, C, H, W, to six digits; exact, so repeatable."""
    means, stds = [], []
    values = np.arange(256) / 255
    for channel in range(images.shape[1]):
        counts = np.zeros(256)
        for part in _parts(images):
            counts += np.bincount(part[:, channel].ravel(), minlength=256)
        share = counts / counts.sum()
        means.append(round(float(share @ values), 6))
        stds.append(round(float(np.sqrt(share @ (values - share @ values) ** 2)), 6))
    return tuple(means), tuple(stds)


def _parts(images: Images) -> list[Images]:
    """Views of 1,000 images: a set on the disk need not fit in memory twice."""
    return [images[start : start + 1000] for start in range(0, len(images), 1000)]


def hold_out(train: Split, num_heldout: int, seed: int) -> tuple[Split, Split]:
    """Split train at random into (rest, held-out); epochs and hyper-parameters are chosen on held-out only."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(train.labels))
    heldout, rest = np.sort(order[:num_heldout]), np.sort(order[num_heldout:])
    return Split(train.images[rest], train.labels[rest]), Split(train.images[heldout], train.labels[heldout])
