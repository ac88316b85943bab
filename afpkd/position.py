"""Channel-level position-sensitive weight: which channels of a level matter, judged by how they relate in space.

FreeKD (Zhang et al., CVPR 2024) calls it the position-aware relational weight, and AFPKD keeps it for "high-order
spatial enhancement": A = softmax(psi(F) F^T) relates every channel of the next layer to every channel of this one
through all positions, and a gate G turns A into one weight a channel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 64
"""Channels of the widest level on which the numbers were measured: more are brought to what so many compute."""


class PositionWeight(nn.Module):
    """Weights omega of the `channels` of one level, from its own map and the next deeper one.

    The paper leaves open: the scale of the softmax (here 1 / sqrt(H W)), how psi meets a smaller map (nearest
    upsampling), the last level (it looks at itself: `next_channels` = `channels`), and the norm of omega: mean 1,
    since a trainable gate that multiplies the loss it is trained on would go to zero.

    standardise: bring the rows of A to mean 0 and variance 1 before the gate. Of maps without a mean they lie near
    1 / C, and omega hardly varies between channels. Of real ones inner products grow with H W, and A is nearly one
    channel's alone (median of a row's largest share on a ResNet-56: 0.56 to 0.99 before phase 1, 1.00 after it): omega
    is then little more than a number that each channel has learnt.
    """

    def __init__(self, channels: int, next_channels: int, *, standardise: bool) -> None:
        super().__init__()
        self.standardise = standardise
        hidden = max(channels // 4, 1)
        self.psi = nn.Conv2d(next_channels, channels, 1)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, feature: Tensor, next_feature: Tensor) -> Tensor:
        """N, C, H, W and N, C', H', W' -> omega N, C with mean 1 over the channels."""
        relation = position_relation(feature, self.psi(next_feature))
        if self.standardise:
            channels = relation.shape[-1]
            eps = 1e-5 * min(1.0, NARROW / channels) ** 2  # a softmax's variance falls with the square of its channels
            relation = F.layer_norm(relation, (channels,), eps=eps)
        return unit_mean(self.gate(relation).squeeze(-1))


def position_relation(feature: Tensor, projected: Tensor) -> Tensor:
    """A = softmax over the last axis of psi(F) F^T / sqrt(H W): N, C, H, W and N, C', H', W' -> N, C, C."""
    size = feature.shape[-2:]
    if projected.shape[-2:] != size:
        projected = F.interpolate(projected, size, mode="nearest")
    query, key = projected.flatten(2), feature.flatten(2)
    if query.dtype != torch.float16:
        return _softmax_of_products(query, key)
    with torch.autocast(query.device.type, enabled=False):  # a detector's products leave float16's range
        return _softmax_of_products(query.float(), key.float())


def _softmax_of_products(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax(query @ key.transpose(1, 2) / key.shape[-1] ** 0.5, dim=-1)


def unit_mean(omega: Tensor) -> Tensor:
    """Scale positive weights N, C to mean 1 over the channels."""
    return omega / omega.mean(dim=1, keepdim=True)
