"""ReviewKD: Chen et al., "Distilling knowledge via knowledge review" (CVPR 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.fusion import FeatureFusion
from afpkd.losses import Progress, hierarchical_context_loss, warm_up
from afpkd.models.outputs import AnyOutputs, Shapes


class ReviewKD(Distiller):
    """gamma x the HCL of fused student features against the teacher's, summed over the stages and the pooled vector, or
    over the levels of a detector's pyramid."""

    def __init__(self, student: Shapes, teacher: Shapes, *, gamma: float, warm_up: float) -> None:
        super().__init__()
        self.gamma, self.warm_up = gamma, warm_up
        channels = student.imitated_channels(), teacher.imitated_channels()
        self.fusion = FeatureFusion(*channels, teacher.imitated_sizes(), local_branch=False)

    def forward(self, student: AnyOutputs, teacher: AnyOutputs, target: Any, progress: Progress) -> Losses:
        """{"spatial"}."""
        fused = self.fusion(student.imitated())
        return {"spatial": self.gamma * warm_up(progress, self.warm_up) * spatial_loss(fused, teacher)}


def spatial_loss(fused: list[Tensor], teacher: AnyOutputs) -> Tensor:
    """HCL of each fused level against the teacher's map (pre-activation) and pooled vector, summed."""
    pairs = zip(fused, teacher.imitated(), strict=True)
    losses = [hierarchical_context_loss(ours, target) for ours, target in pairs]
    return sum(losses[1:], start=losses[0])
