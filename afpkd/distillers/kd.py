"""Knowledge distillation on logits: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network" (2015)."""

from __future__ import annotations

from torch import Tensor

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.losses import Progress, soft_target_loss, standardised
from afpkd.models.outputs import Outputs, Shapes


class KD(Distiller):
    """task_weight x cross-entropy + kd_weight x T^2 KL(teacher || student)."""

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        *,
        temperature: float,
        kd_weight: float,
        task_weight: float,
        standardise: bool,
    ) -> None:
        super().__init__()
        self.standardise = standardise
        self.temperature, self.kd_weight, self.task_weight = temperature, kd_weight, task_weight

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress) -> Losses:
        """{"kd"}."""
        logits = student.logits, teacher.logits
        ours, theirs = map(standardised, logits) if self.standardise else logits
        return {"kd": self.kd_weight * soft_target_loss(ours, theirs, self.temperature)}
