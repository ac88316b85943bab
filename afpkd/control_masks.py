"""Masks that keep an equal share of a level's coefficients: what the prompts' own are held against."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def shuffled(masks: list[Tensor]) -> list[Tensor]:
    """A level's masks, N, O, h, w a group, in one fixed random order of all its coefficients: an equal share.

    Neither the choice of bands nor that of pixels is left; an equal share *of each band* keeps `banded`.
    """
    flat = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    parts = torch.split(flat[:, _order(flat.shape[1], flat.device)], [mask[0].numel() for mask in masks], dim=1)
    return [part.view_as(mask) for part, mask in zip(parts, masks, strict=True)]


@functools.cache
def _order(num: int, device: torch.device) -> Tensor:
    """One random order of `num` values, copied to the device once."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(0)).to(device)


def constant(masks: list[Tensor]) -> list[Tensor]:
    """The mean over a level's coefficients, N, O, h, w a group, everywhere: an equal share of them."""
    mean = torch.cat([mask.flatten(1) for mask in masks], dim=1).mean(dim=1)
    return [mean[:, None, None, None].expand_as(mask) for mask in masks]


def banded(masks: list[Tensor]) -> list[Tensor]:
    """Each band's own mean over its pixels, N, O, h, w a group: which bands count is kept, which pixels is not."""
    return [mask.mean(dim=(-2, -1), keepdim=True).expand_as(mask) for mask in masks]
