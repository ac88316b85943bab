"""Batches from a data set that lies whole, as uint8, on the training device: no workers, no copies, no PIL.

All randomness is a function of (seed, step): a resumed run draws the crops and flips that it would have drawn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afpkd.data.dataset import Split


class Pixels(NamedTuple):
    """A split on the training device. images: uint8 N, C, H, W; labels: int64 N; mean, std a channel."""

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 N, C, H, W -> float32 (pixel * (1 / 255) - mean) / std, channels last in memory (faster convolutions).

        The arithmetic of the bundle's manifest, operation by operation: the exported file sees the same inputs.
        """
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, device=images.device).view(shape) for v in (self.mean, self.std))
        planes = images.float().mul_(1 / 255).sub_(mean).div_(std)  # a plane, a number: 4x faster than a pixel, three
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


def random_view(images: Tensor, *, least_area: float, rotation: float, generator: torch.Generator) -> Tensor:
    """A random part of each of `images` (uint8 N, C, H, W), turned, at the size of the whole; the batch at once.

    The part has least_area..1 of the image's area and 3/4..4/3 of its proportions (Inception's crop; Szegedy et al.
    2015); it is turned by up to `rotation` degrees either way. Bilinear; black beyond the edge.
    """
    num, device = len(images), images.device
    height, width = images.shape[-2:]
    draw = torch.rand(5, num, device=device, generator=generator)
    area, ratio = least_area + (1 - least_area) * draw[0], torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    if least_area == 1:
        ratio = torch.ones_like(ratio)
    across, down = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    x, y = (2 * draw[2] - 1) * (1 - across), (2 * draw[3] - 1) * (1 - down)
    angle = (2 * draw[4] - 1) * math.radians(rotation)
    cos, sin = angle.cos(), angle.sin()
    # Where each pixel comes from, in halves of the image: its position in the part, scaled, turned (in pixels), moved.
    rows = [across * cos, -down * sin * (height / width), x, across * sin * (width / height), down * cos, y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(num, 2, 3), list(images.shape), align_corners=False)
    seen = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return seen.round_().to(torch.uint8)
