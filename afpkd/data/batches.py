"""Batches from a data set that lies whole, as uint8, on the training device: no workers, no copies, no PIL.

All randomness is a function of (seed, step): a resumed run draws the crops and flips that it would have drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
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
    least_area: float = 1.0
    """Of photos: a part of at least so much of the image, scaled back to the whole (`random_view`)."""
    rotation: float = 0.0
    """Turned by up to so many degrees either way."""
    scales: tuple[float, float] = (1.0, 1.0)
    """Of scenes with boxes: scale by a factor between these."""


WHOLE = slice(None)
"""All of a batch."""


class Draws(NamedTuple):
    """The random numbers of `part` of a batch of `num` images: what it gets when the whole batch is drawn."""

    generator: torch.Generator
    num: int
    part: slice = WHOLE

    def uniform(self, rows: int) -> Tensor:
        """In 0..1: rows, images of the part."""
        drawn = torch.rand(rows, self.num, device=self.generator.device, generator=self.generator)
        return drawn[:, self.part]

    def integers(self, rows: int, beyond: int) -> Tensor:
        """From 0 to below `beyond`: rows, images of the part."""
        size = (rows, self.num)
        return torch.randint(0, beyond, size, device=self.generator.device, generator=self.generator)[:, self.part]


class Samples(Protocol):
    """What the training loop reads: images on a device, and what the task compares with."""

    @property
    def num_images(self) -> int:
        """How many there are."""

    @property
    def device(self) -> torch.device:
        """Where they are used."""

    def sample(self, num: int) -> Tensor:
        """Images to judge by, always the same ones, and not of a few classes alone: uint8 n, C, H, W."""

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 N, C, H, W -> float32, as the networks see them."""

    def batch(
        self, chosen: Tensor, augmentation: Augmentation, generator: torch.Generator, part: slice = WHOLE
    ) -> tuple[Tensor, Any]:
        """Normalised, augmented images of these numbers, and their targets.

        part: make only these of the batch, as they are in the whole one.
        """


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

    def sample(self, num: int) -> Tensor:
        """The first images; where images lie class by class, as folders do, evenly spaced ones. uint8 n, C, H, W.

        In an order that does not follow the classes: what is swapped with a neighbour shall not be of its own class.
        """
        if not bool((self.labels.diff() >= 0).all()):
            return self.images[:num]
        chosen = evenly_spaced(num, self.num_images)
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        return self.images[chosen[order].to(self.device)]

    def batch(
        self, chosen: Tensor, augmentation: Augmentation, generator: torch.Generator, part: slice = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """Normalised images, cropped, turned and mirrored at random, and their labels."""
        wanted, draws, chosen = augmentation, Draws(generator, len(chosen), part), chosen[part]
        images = self.images.index_select(0, chosen.to(self.device))
        if wanted.least_area < 1 or wanted.rotation:
            images = random_view(images, least_area=wanted.least_area, rotation=wanted.rotation, draws=draws)
        images = random_crop_and_flip(images, padding=wanted.padding, flip=wanted.flip, draws=draws)
        return self.normalised(images), self.labels[chosen]


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 N, C, H, W -> float32 (pixel * (1 / 255) - mean) / std, channels last in memory (faster convolutions).

    The arithmetic of the bundle's manifest, operation by operation: the exported file sees the same inputs.
    """
    means, stds = (_a_channel(tuple(values), images.device) for values in (mean, std))
    planes = images.float().mul_(1 / 255).sub_(means).div_(stds)  # a plane, a number: 4x faster than a pixel, three
    return planes.contiguous(memory_format=torch.channels_last)


def evenly_spaced(num: int, of: int) -> Tensor:
    """The indices of `num` of so many images, of all where there are fewer: they may lie class by class."""
    num = min(num, of)
    return torch.arange(num) * of // max(num, 1)


@cache
def _a_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """1, C, 1, 1 on the device, put there once: each time it would wait for what it was given to do."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


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


def random_crop_and_flip(images: Tensor, *, padding: int, flip: bool, draws: Draws) -> Tensor:
    """Crop each of `images` (uint8 N, C, H, W) from its black-padded self at random, then mirror half of them.

    The literature's CIFAR augmentation (He et al. 2016: padding 4), the whole batch at once.
    """
    (num, channels, height, width), device = images.shape, images.device
    top = left = mirrored = torch.zeros(num, dtype=torch.long, device=device)
    if padding:
        top, left = draws.integers(2, 2 * padding + 1)
    if flip:
        mirrored = (draws.uniform(1)[0] < 0.5).long()
        left = torch.where(mirrored == 1, 2 * padding - left, left)
    padded = F.pad(images, (padding,) * 4)
    # Row by row, out of padded images and their mirror images: rows are copied whole, 10x faster than pixel by pixel.
    both = torch.stack([padded, padded.flip(-1)]) if flip else padded
    planes = (mirrored * num + torch.arange(num, device=device))[:, None] * channels
    planes = planes + torch.arange(channels, device=device)
    rows = (planes * padded.shape[2] + top[:, None])[:, :, None] + torch.arange(height, device=device)
    begins = rows * padded.shape[3] + left[:, None, None]
    chosen = both.flatten().unfold(0, width, 1).index_select(0, begins.flatten())
    return chosen.view(num, channels, height, width)


def random_view(images: Tensor, *, least_area: float, rotation: float, draws: Draws) -> Tensor:
    """A random part of each of `images` (uint8 N, C, H, W), turned, at the size of the whole; the batch at once.

    The part has least_area..1 of the image's area and 3/4..4/3 of its proportions, as far as it fits (Inception's crop;
    Szegedy et al. 2015); it is turned by up to `rotation` degrees either way. Bilinear; black beyond the edge.
    """
    num = len(images)
    height, width = images.shape[-2:]
    draw = draws.uniform(5)
    area, ratio = least_area + (1 - least_area) * draw[0], torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    ratio = torch.minimum(torch.maximum(ratio, area), 1 / area)  # a large part is as wide or high as the image, no more
    across, down = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    x, y = (2 * draw[2] - 1) * (1 - across), (2 * draw[3] - 1) * (1 - down)
    angle = (2 * draw[4] - 1) * math.radians(rotation)
    cos, sin = angle.cos(), angle.sin()
    # Where each pixel comes from, in halves of the image: its position in the part, scaled, turned (in pixels), moved.
    rows = [across * cos, -down * sin * (height / width), x, across * sin * (width / height), down * cos, y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(num, 2, 3), list(images.shape), align_corners=False)
    seen = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return seen.round_().to(torch.uint8)
