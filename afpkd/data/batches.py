"""Batches from a data set that lies whole, as uint8, on the training device: no workers, no copies, no PIL.

All randomness is a function of (seed, step): a resumed run draws the crops and flips that it would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afpkd.data.dataset import Split


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images at random."""

    padding: int = 4
    """Of small images: crop from so many black pixels a side."""
    flip: bool = True
    """Mirror half of them."""
    scales: tuple[float, float] = (1.0, 1.0)
    """Of scenes with boxes: scale by a factor between these."""


class Samples(Protocol):
    """What the training loop reads: images on a device, and what the task compares with."""

    @property
    def num_images(self) -> int:
        """How many there are."""

    @property
    def device(self) -> torch.device:
        """Where they are used."""

    def batch(self, chosen: Tensor, augmentation: Augmentation, generator: torch.Generator) -> tuple[Tensor, Any]:
        """Normalised, augmented images of these numbers, and their targets."""


class Pixels(NamedTuple):
    """A split on the training device. images: uint8 N, C, H, W; labels: int64 N; mean, std a channel."""

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_images(self) -> int:
        """How many there are."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.images.device

    def normalised(self, images: Tensor) -> Tensor:
        """`normalised` with the mean and std of this split."""
        return normalised(images, self.mean, self.std)

    def first(self, num: int) -> Tensor:
        """The first images, uint8 n, C, H, W."""
        return self.images[:num]

    def batch(self, chosen: Tensor, augmentation: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normalised images, cropped and mirrored at random, and their labels."""
        images = random_crop_and_flip(
            self.images[chosen], padding=augmentation.padding, flip=augmentation.flip, generator=generator
        )
        return self.normalised(images), self.labels[chosen]


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 N, C, H, W -> float32 (pixel * (1 / 255) - mean) / std, channels last in memory (faster convolutions).

    The arithmetic of the bundle's manifest, operation by operation: the exported file sees the same inputs.
    """
    means, stds = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (mean, std))
    planes = images.float().mul_(1 / 255).sub_(means).div_(stds)  # a plane, a number: 4x faster than a pixel, three
    return planes.contiguous(memory_format=torch.channels_last)


def pixels_from_split(split: Split, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Pixels:
    """Move a split to `device` once."""
    images, labels = torch.from_numpy(split.images.copy()), torch.from_numpy(split.labels.copy())
    return Pixels(images.to(device), labels.to(device), tuple(mean), tuple(std))


def epoch_order(num: int, seed: int, epoch: int) -> Tensor:
    """The order in which epoch `epoch` (0-based) visits `num` images, on the CPU: the same on every device."""
    return torch.randperm(num, generator=generator_for("order", seed, epoch, torch.device("cpu")))


def generator_for(purpose: str, seed: int, counter: int, device: torch.device) -> torch.Generator:
    """A generator for one use: another for each (purpose, seed, counter), so that no state need be kept to resume.

    The three are mixed by numpy's SeedSequence, since torch's CPU generator looks at the low 32 bits of a seed only.
    """
    mixed = np.random.SeedSequence([*purpose.encode(), seed, counter]).generate_state(1)[0]
    return torch.Generator(device).manual_seed(int(mixed))


def random_crop_and_flip(images: Tensor, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Crop each of `images` (uint8 N, C, H, W) from its black-padded self at random, then mirror half of them.

    The literature's CIFAR augmentation (He et al. 2016: padding 4), the whole batch at once.
    """
    num, device = len(images), images.device
    if padding:
        height, width = images.shape[-2:]
        windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        top, left = torch.randint(0, 2 * padding + 1, (2, num), device=device, generator=generator)
        images = windows[torch.arange(num, device=device), :, top, left]
    if flip:
        mirrored = torch.rand(num, device=device, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images
