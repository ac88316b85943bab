"""Feature imitation: Romero et al., "FitNets: hints for thin deep nets" (ICLR 2015), at every level.

The plain baseline of detection: each level of the student's pyramid, brought to the teacher's channels by a 1x1
convolution and BatchNorm (FitNets' regressor is a convolution without one), against the teacher's by its mean squared
error.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.fusion import LevelAdapters
from afpkd.losses import Progress, in_spreads, warm_up
from afpkd.models.outputs import AnyOutputs, Shapes


class Imitation(Distiller):
    """gamma x the mean squared error of the adapted maps, summed over levels."""

    def __init__(self, student: Shapes, teacher: Shapes, *, gamma: float, warm_up: float, relative: bool) -> None:
        super().__init__()
        self.gamma, self.warm_up, self.relative = gamma, warm_up, relative
        self.adapters = LevelAdapters(student.channels, teacher.channels, teacher.sizes)

    def forward(self, student: AnyOutputs, teacher: AnyOutputs, target: Any, progress: Progress) -> Losses:
        """{"spatial"}."""
        pairs = zip(self.adapters(student.features), teacher.features, strict=True)
        first, *others = [F.mse_loss(*(in_spreads(*pair) if self.relative else pair)) for pair in pairs]
        return {"spatial": self.gamma * warm_up(progress, self.warm_up) * sum(others, start=first)}
