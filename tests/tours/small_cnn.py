"""A small CNN: three convolutions with BatchNorm, each at half the resolution of the one before."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled

WIDTHS = (16, 32, 64)
"""Channels of the three stages."""


class SmallCnn(nn.Module):
    """Three stages: input N, in_channels, H, W with H, W >= 8; features at full, half and quarter resolution."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        before = (in_channels, *WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b, w, 3, padding=1, bias=False), nn.BatchNorm2d(w))
            for b, w in zip(before, WIDTHS, strict=False)
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's pre-activation feature on its way (see `Refine`)."""
        features = []
        for level, stage in enumerate(self.stages):
            feature = stage(F.max_pool2d(x, 2) if level else x)
            if refine is not None:
                feature = refine(level, feature)
            features.append(feature)
            x = F.relu(feature)
        pooled = average_pooled(x)
        return Outputs(self.classifier(pooled), features, pooled, x, self.classifier)
