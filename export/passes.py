"""How many images one pass through a network takes, and its answers pass by pass. No torch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json
from export.bundle import preprocess
from export.verify import Forward, Logits

MOST_PIXELS = 1_100_000
"""Of the images of one pass, as `afpkd.evaluate` has it while training."""

MOST_IMAGES = 250
"""Of a pass, however small they are."""


def images_a_pass(size: Sequence[int], most: int = MOST_IMAGES) -> int:
    """How many images of `size` (H, W) one pass takes: `most` up to 66x66 pixels, 21 of 224x224, 4 of 512x512."""
    return min(most, max(1, MOST_PIXELS // math.prod(size)))


def outputs_of(forward: Forward, images: NDArray[np.uint8], rule: Json, *, on_disk: bool = False) -> Logits:
    """The network's answers to all pixels N, C, H, W, which are preprocessed a pass at a time.

    on_disk: keep them in a file that goes with the array, for a detector's raw output fills gigabytes.
    """
    size = images_a_pass(images.shape[-2:])
    starts = range(0, len(images), size)
    answers = (forward(preprocess(images[start : start + size], rule)) for start in starts)
    return _on_disk(answers, len(images)) if on_disk else np.concatenate(list(answers))


def outputs_of_preprocessed(forward: Forward, inputs: NDArray[np.float32]) -> Logits:
    """The same for images that are preprocessed already."""
    size = images_a_pass(inputs.shape[-2:])
    return np.concatenate([forward(inputs[start : start + size]) for start in range(0, len(inputs), size)])


def _on_disk(answers: Iterator[Logits], num: int) -> Logits:
    first = next(answers)
    with tempfile.TemporaryFile() as file:  # without a name: what is mapped stays until the array goes
        kept: Logits = np.memmap(file, np.float32, "w+", shape=(num, *first.shape[1:]))
    kept[: len(first)] = first
    end = len(first)
    for part in answers:
        kept[end : end + len(part)] = part
        end += len(part)
    return kept
