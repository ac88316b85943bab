"""FreeKD: Zhang et al., "FreeKD: knowledge distillation via semantic frequency prompt" (CVPR 2024).

    L = task + r mu mean over levels and bands of  omega_r || M a - M b ||_1,   r = the warm-up ramp

The ancestor of AFPKD without its additions: an adapter a level, masks of the fixed prompts, no fusion module, no
spatial term. What the prompts are and how they learn is said in [prompts], whose defaults are not FreeKD's. These are:

    united = false, gate = false          tokens are averaged, the same for every image; a recipe must say so
    objective = "task"                    they learn from the task's loss, there being no budget of area
    overlap_weight = 1                    lambda of the overlap's loss
    must_choose = false                   and so they need not choose (`afpkd.prompts`)

What is ours here: logits of the masks are P_i R / sqrt(C), and 2 w R (w: the mean of the tokens' masks) takes the
band's place, where the paper has sum_i sigmoid(P_i R) R: the same for two tokens, but for sqrt(C). omega is scaled to
mean 1. One mask w stands for the sum over tokens, means for sums over channels and positions: mu takes up the factor.
The adapter has a BatchNorm and no bias, where FreeKD's is a plain 1x1 convolution with one. The ramp is ReviewKD's. The
paper's equations are followed; its released code, for detectors, leaves out the low band and the position weight and
adds a spatial MSE.
"""

from __future__ import annotations

from typing import Any

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.distillers.frequency import FrequencyTerm
from afpkd.fusion import LevelAdapters
from afpkd.losses import Progress, warm_up
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

    def forward(self, student: AnyOutputs, teacher: AnyOutputs, target: Any, progress: Progress) -> Losses:
        """{"frequency"}."""
        weight = self.mu * warm_up(progress, self.warm_up)
        return {"frequency": weight * self.frequency(self.adapters(student.features), teacher.features)}
