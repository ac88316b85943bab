"""DKD: Zhao et al., "Decoupled knowledge distillation" (CVPR 2022)."""

from __future__ import annotations

from torch import Tensor

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.losses import Progress, decoupled_losses, standardised, warm_up
from afpkd.models.outputs import Outputs, Shapes


class DKD(Distiller):
    """Cross-entropy + alpha x TCKD (the target class) + beta x NCKD (the other classes)."""

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        *,
        temperature: float,
        alpha: float,
        beta: float,
        standardise: bool,
        warm_up: float,
    ) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta, self.warm_up = temperature, alpha, beta, warm_up
        self.standardise = standardise

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress) -> Losses:
        """{"target_class", "other_classes"}, each where its weight is not 0."""
        logits = student.logits, teacher.logits
        ours, theirs = map(standardised, logits) if self.standardise else logits
        ramp = warm_up(progress, self.warm_up)
        parts = decoupled_losses(ours, theirs, target, self.temperature)
        weights = {"target_class": self.alpha, "other_classes": self.beta}
        named = zip(weights.items(), parts, strict=True)
        return {name: ramp * weight * part for (name, weight), part in named if weight}
