"""Accuracy of a network on a split; how many images one pass takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from afpkd.data.batches import Pixels
from afpkd.errors import UserError

Forward = Callable[[Tensor], Tensor]
"""Normalised images N, C, H, W -> logits N, K."""

MOST_PIXELS = 1_100_000
"""Of the images of one pass: a thousand of CIFAR, 32 canvases of 160x208, 21 photos of 224x224. Judging prompts inside
a ResNet-18 of the CIFAR kind takes 3.7 KB a pixel: 4 GB a pass."""

_BATCH_SIZE = 500


def in_passes(images: Tensor, most_pixels: int = MOST_PIXELS) -> tuple[Tensor, ...]:
    """N, C, H, W in equal parts of at most so many pixels, but of two images at least: dropped bands are swapped."""
    size = max(1, most_pixels // math.prod(images.shape[-2:]))
    num = min(math.ceil(len(images) / size), len(images) // 2)
    return torch.tensor_split(images, max(num, 1))


def bounds_of_passes(num: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each pass over `num` images, `size` a pass; no image is alone: dropped bands are swapped.

    One that is left over joins the pass before.
    """
    starts = list(range(0, num, max(size, 2)))
    if len(starts) > 1 and num - starts[-1] == 1:
        starts.pop()
    return pairwise([*starts, num])


def predict(forward: Forward, pixels: Pixels) -> Tensor:
    """Logits N, K of every image of a split, without gradients."""
    size = min(_BATCH_SIZE, max(1, MOST_PIXELS // math.prod(pixels.images.shape[-2:])))
    with torch.no_grad():
        passes = bounds_of_passes(pixels.num_images, size)
        return torch.cat([forward(pixels.normalised(pixels.images[start:end])) for start, end in passes])


def top1(forward: Forward, pixels: Pixels) -> float:
    """Top-1 accuracy in percent, 0-100; UserError where an answer is NaN or infinite: it would count as class 0."""
    logits = predict(forward, pixels)
    if lost := int((~logits.isfinite()).any(dim=1).sum()):
        told = f"the network answers NaN or infinity to {lost} of {len(logits)} images"
        raise UserError("E_WEIGHTS_NAN", f"{told}: take other weights, or train with a lower lr")
    correct = int((logits.argmax(dim=1) == pixels.labels).sum())
    return correct * 100 / len(pixels.labels)
