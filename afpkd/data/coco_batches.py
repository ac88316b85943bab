"""Batches of scenes with boxes: letterboxed on one canvas, scaled, cropped and mirrored together with their boxes.

The canvas is what the exported file takes: training, held-out scores and the device see the same geometry. As for small
images all randomness is a function of (seed, step), and a split that fits in memory lies on the device as uint8.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afpkd.data.batches import WHOLE, Augmentation, normalised
from afpkd.data.coco import CocoSplit, letterbox_scale, read_canvases

MOST_BYTES_IN_MEMORY = 4 << 30
"""A split of more pixels is read from its files, batch by batch (COCO 2017 at 800 x 1344 has 380 GB)."""

LEAST_LEFT = 0.25
"""A box of which the crop leaves a smaller part is not taught: what it shows can hardly be told."""


Boxed = dict[str, Tensor]
"""What is on one image: `boxes` M, 4 (left, top, right, bottom in pixels of the canvas) and `labels` int64 M."""


class Placing(NamedTuple):
    """How the content of each canvas is moved, all of shape N: mirrored, then scaled, then shifted left and up."""

    mirrored: Tensor
    factor: Tensor
    left: Tensor
    top: Tensor


class Scenes:
    """A split for training and scoring. `images`: uint8 N, 3, H, W on the device, one a file; None where too many."""

    def __init__(
        self,
        split: CocoSplit,
        canvas: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        *,
        most_bytes: int = MOST_BYTES_IN_MEMORY,
    ) -> None:
        self.split, self.canvas, self.device = split, canvas, device
        self.mean, self.std = tuple(mean), tuple(std)
        self.scales = [letterbox_scale(scene.size, canvas) for scene in split.scenes]
        first: dict[Path, int] = {}  # a split may hold each scene several times: `repeated`
        for index, scene in enumerate(split.scenes):
            first.setdefault(scene.path, index)
        rows = {path: row for row, path in enumerate(first)}
        self._rows = [rows[scene.path] for scene in split.scenes]
        self.images: Tensor | None = None
        if len(first) * 3 * canvas[0] * canvas[1] <= most_bytes:
            self.images = self._read(list(first.values()))

    @property
    def num_images(self) -> int:
        """How many there are."""
        return len(self.split.scenes)

    def pixels(self, chosen: list[int]) -> Tensor:
        """The canvases of some images, uint8 n, 3, H, W."""
        if self.images is None:
            return self._read(chosen)
        return self.images[torch.tensor([self._rows[index] for index in chosen], device=self.device)]

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 N, 3, H, W -> float32, by the arithmetic of the bundle's manifest."""
        return normalised(images, self.mean, self.std)

    def sample(self, num: int) -> Tensor:
        """The canvases of the first images, uint8 n, 3, H, W."""
        return self.pixels(list(range(min(num, self.num_images))))

    def batch(
        self, chosen: Tensor, augmentation: Augmentation, generator: torch.Generator, part: slice = WHOLE
    ) -> tuple[Tensor, list[Boxed]]:
        """Normalised, augmented images, and what is on each."""
        content = torch.tensor([self._content(index) for index in chosen.tolist()], device=self.device)
        placing = random_placing(content, self.canvas, augmentation, generator)
        placing, content, indices = Placing(*(drawn[part] for drawn in placing)), content[part], chosen[part].tolist()
        images = placed_images(self.pixels(indices), content, placing)
        # boxes are few: on a GPU each step would be a wait
        content, placing = content.cpu(), Placing(*(drawn.cpu() for drawn in placing))
        moved = [
            placed_boxes(self.boxes(index), content[row], Placing(*(column[row] for column in placing)), self.canvas)
            for row, index in enumerate(indices)
        ]
        targets = [{name: tensor.to(self.device) for name, tensor in target.items()} for target in moved]
        return self.normalised(images), targets

    def boxes(self, index: int) -> Boxed:
        """What is on an image, on its canvas; in the CPU's memory."""
        scene = self.split.scenes[index]
        boxes = torch.from_numpy(scene.boxes * np.float32(self.scales[index]))
        return {"boxes": boxes, "labels": torch.from_numpy(scene.labels)}

    def _content(self, index: int) -> tuple[float, float]:
        """Width and height of the image on its canvas."""
        height, width = self.split.scenes[index].size
        return width * self.scales[index], height * self.scales[index]

    def _read(self, indices: list[int]) -> Tensor:
        read = read_canvases((self.split.scenes[index] for index in indices), self.canvas)
        return torch.from_numpy(np.stack([pixels for pixels, _ in read])).to(self.device)


def random_placing(
    content: Tensor, canvas: tuple[int, int], augmentation: Augmentation, generator: torch.Generator
) -> Placing:
    """Draw how each content (N, 2: width and height) is moved: a factor within `augmentation.scales`, a mirror.

    Content that grows beyond the canvas is cropped at random; smaller content stays in the corner, as letterboxed.
    """
    num, device = len(content), content.device
    least, most = augmentation.scales
    drawn = torch.rand(4, num, device=device, generator=generator)
    factor = least + (most - least) * drawn[0]
    excess = (content * factor[:, None] - torch.tensor(canvas[::-1], device=device)).clamp_min(0)
    mirrored = (drawn[1] < 0.5) & augmentation.flip
    return Placing(mirrored, factor, drawn[2] * excess[:, 0], drawn[3] * excess[:, 1])


def placed_images(images: Tensor, content: Tensor, placing: Placing) -> Tensor:
    """Move the content of each canvas (uint8 N, 3, H, W), bilinearly; what comes from outside of it is black."""
    height, width = images.shape[-2:]
    device = images.device
    across = (torch.arange(width, device=device) + 0.5 + placing.left[:, None]) / placing.factor[:, None]
    down = (torch.arange(height, device=device) + 0.5 + placing.top[:, None]) / placing.factor[:, None]
    across = torch.where(placing.mirrored[:, None], content[:, :1] - across, across)
    grid = torch.stack(
        [
            (2 * across / width - 1)[:, None].expand(-1, height, -1),
            (2 * down / height - 1)[:, :, None].expand(-1, -1, width),
        ],
        dim=-1,
    )
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def placed_boxes(target: Boxed, content: Tensor, placing: Placing, canvas: tuple[int, int]) -> Boxed:
    """The boxes of one image, moved as its content is and cut at the canvas; those that are mostly cut away are left.

    content: 2 (width, height); placing: of this image.
    """
    left, top, right, bottom = target["boxes"].unbind(1)
    if bool(placing.mirrored):
        left, right = content[0] - right, content[0] - left
    boxes = torch.stack([left, top, right, bottom], dim=1) * placing.factor
    boxes = boxes - torch.stack([placing.left, placing.top]).repeat(2)
    limits = torch.tensor(canvas[::-1], device=boxes.device, dtype=boxes.dtype).repeat(2)
    cut = torch.minimum(boxes.clamp_min(0), limits)
    kept = (_areas(cut) >= LEAST_LEFT * _areas(boxes)) & ((cut[:, 2:] - cut[:, :2]).amin(dim=1) >= 1)
    return {"boxes": cut[kept], "labels": target["labels"][kept]}


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=1)
