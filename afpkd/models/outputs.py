"""What every network of ours returns, and how prompts act inside one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

Refine = Callable[[int, Tensor], Tensor]
"""`refine(level, feature) -> feature` of the same shape: called once a level, before the stage's last ReLU."""


class Outputs(NamedTuple):
    """One forward pass.

    logits: N, K class scores.
    features: one map a stage, shallow to deep, each N, C, H, W, *before* the stage's last ReLU: the pre-activation
        target that ReviewKD and AFPKD imitate.
    pooled: N, C, the vector that enters the classifier.
    final: N, C, h, w, the map whose mean over positions is `pooled`.
    classifier: the linear layer that turns `pooled` into logits (and, position by position, `final` into class maps).
    """

    logits: Tensor
    features: list[Tensor]
    pooled: Tensor
    final: Tensor
    classifier: nn.Linear


class Shapes(NamedTuple):
    """What a distiller must know of a network to size its adapters: probed, never written by hand."""

    channels: list[int]
    sizes: list[tuple[int, int]]
    pooled: int
    num_classes: int

    def at(self, levels: Sequence[int]) -> Shapes:
        """These levels only, in this order."""
        channels, sizes = [self.channels[level] for level in levels], [self.sizes[level] for level in levels]
        return self._replace(channels=channels, sizes=sizes)


def average_pooled(final: Tensor) -> Tensor:
    """Mean over all positions of N, C, h, w -> N, C, by a pool of fixed size: what an exported file needs.

    An adaptive pool becomes a ReduceMean, which NVIDIA's DLA does not know; without `int` torch's older exporter, the
    only one that writes opset 17, takes the size for a variable.
    """
    return F.avg_pool2d(final, (int(final.shape[-2]), int(final.shape[-1]))).flatten(1)
