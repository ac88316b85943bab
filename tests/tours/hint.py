"""Hint loss: Romero et al., "FitNets: hints for thin deep nets" (ICLR 2015), equation 3, at the middle level.

The student's middle map, brought to the teacher's channels and size by a regressor, against the teacher's.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.fusion import LevelAdapters
from afpkd.losses import Progress, warm_up
from afpkd.models.outputs import AnyOutputs, Shapes


class Hint(Distiller):
    """beta x half the mean squared error of the middle level."""

    def __init__(self, student: Shapes, teacher: Shapes, *, beta: float, warm_up: float) -> None:
        super().__init__()
        self.beta, self.warm_up, self.level = beta, warm_up, len(teacher.channels) // 2
        ours, theirs = (shapes.at([self.level]) for shapes in (student, teacher))
        self.regressor = LevelAdapters(ours.channels, theirs.channels, theirs.sizes)

    def forward(self, student: AnyOutputs, teacher: AnyOutputs, target: Any, progress: Progress) -> Losses:
        """{"hint"}."""
        (adapted,) = self.regressor([student.features[self.level]])
        distance = F.mse_loss(adapted, teacher.features[self.level]) / 2
        return {"hint": self.beta * warm_up(progress, self.warm_up) * distance}
