r"""Haar wavelet bands of feature maps: the frequency domain in which AFPKD distils.

One level of the orthonormal 2-D Haar transform takes each 2x2 block (a b / c d) to
    low  LL = (a + b + c + d) / 2        row detail       = (a + b - c - d) / 2
    column detail = (a - b + c - d) / 2  diagonal detail  = (a - b - c + d) / 2
and the next level does the same to LL (Mallat 1989; FreeKD, Zhang et al., CVPR 2024, uses three levels).
Orthonormal: energy is preserved. Odd sizes get one zero row / column at the far end, as PyWavelets' mode "zero" does.

Bands are kept grouped by scale, N, C, O, h, w with O orientations, since the three details of a scale share a size:
`[low (O = 1), details of the coarsest scale (O = 3), ..., details of the finest scale (O = 3)]`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ORIENTATIONS = ("row", "column", "diagonal")


def num_scales(size: tuple[int, int], most: int = 3) -> int:
    """Levels J of the transform for a map of `size` (H, W): log2 - 1, within 1..most; 0 for maps below 4 pixels.

    32 -> 3, 16 -> 3, 8 -> 2, 4 -> 1; a 2x2 or 1x1 map has no scale worth separating.
    """
    smaller = min(size)
    return 0 if smaller < 4 else max(1, min(int(math.log2(smaller)) - 1, most))


def band_names(scales: int) -> list[str]:
    """Names in the order of the bands: `low`, then `row/column/diagonal` with the scale, coarsest first."""
    return ["low"] + [f"{orientation}{scale}" for scale in range(scales, 0, -1) for orientation in ORIENTATIONS]


def haar_dwt(x: Tensor, scales: int) -> list[Tensor]:
    """Bands of `x` (N, C, H, W), grouped by scale (see above): `scales + 1` tensors of shape N, C, O, h, w."""
    groups = []
    low = x
    for _ in range(scales):
        low, details = _analyse(low)
        groups.append(details)
    return [low.unsqueeze(2), *reversed(groups)]


def haar_idwt(groups: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The map N, C, H, W of `size` (H, W) whose bands are `groups`: the inverse of `haar_dwt`."""
    scales = len(groups) - 1
    low = groups[0].squeeze(2)
    for index, details in enumerate(groups[1:]):
        shrink = 2 ** (scales - index - 1)  # the size of the map at this scale, before its own padding
        height, width = (math.ceil(side / shrink) for side in size)
        low = _synthesise(low, details)[..., :height, :width]
    return low


def _analyse(x: Tensor) -> tuple[Tensor, Tensor]:
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    total, difference = top + bottom, top - bottom
    left, right = total[..., 0::2], total[..., 1::2]
    left_difference, right_difference = difference[..., 0::2], difference[..., 1::2]
    low = (left + right) / 2
    details = torch.stack([left_difference + right_difference, left - right, left_difference - right_difference], dim=2)
    return low, details / 2


def _synthesise(low: Tensor, details: Tensor) -> Tensor:
    row, column, diagonal = details.unbind(2)
    a, b = low + row + column + diagonal, low + row - column - diagonal
    c, d = low - row + column - diagonal, low - row - column + diagonal
    top = torch.stack([a, b], dim=-1).flatten(-2)
    bottom = torch.stack([c, d], dim=-1).flatten(-2)
    return torch.stack([top, bottom], dim=-2).flatten(-3, -2) / 2
