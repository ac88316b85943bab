"""FreeKD: Zhang et al., "FreeKD: knowledge distillation via semantic frequency prompt" (CVPR 2024), on classification.

    L = CE + r mu mean over levels and bands of  omega_r || M a - M b ||_1

The ancestor of AFPKD without its additions: one 1x1 adapter a level, masks of the fixed prompts, no fusion module, no
spatial term, no gate (set `[prompts] objective = "task"`, `united = false`, `gate = false`). The paper's equations are
followed; its released code, for detectors, leaves out the low band and the position weight and adds a spatial MSE.
"""

from __future__ import annotations

from typing import Any

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.distillers.frequency import FrequencyTerm
from afpkd.fusion import LevelAdapters
from afpkd.losses import warm_up
from afpkd.models.outputs import AnyOutputs, Shapes
from afpkd.prompts import FrequencyPrompts


class FreeKD(Distiller):
    """The student side (1x1 adapters, trained) and the teacher side (`prompts`, frozen)."""

    def __init__(
        self, student: Shapes, teacher: Shapes, *, prompts: FrequencyPrompts, mu: float, warm_up: float
    ) -> None:
        super().__init__()
        self.mu, self.warm_up = mu, warm_up
        self.adapters = LevelAdapters(student.channels, teacher.channels, teacher.sizes)
        self.frequency = FrequencyTerm(prompts, normalise="none")

    def forward(self, student: AnyOutputs, teacher: AnyOutputs, target: Any, progress: float) -> Losses:
        """{"frequency"}."""
        weight = self.mu * warm_up(progress, self.warm_up)
        return {"frequency": weight * self.frequency(self.adapters(student.features), teacher.features)}
