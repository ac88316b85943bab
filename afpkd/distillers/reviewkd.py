"""ReviewKD: Chen et al., "Distilling knowledge via knowledge review" (CVPR 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.fusion import FeatureFusion
from afpkd.losses import Progress, hierarchical_context_loss, in_spreads, warm_up
from afpkd.models.outputs import AnyOutputs, Outputs, Shapes


class ReviewKD(Distiller):
    """gamma x the HCL of fused student features against the teacher's, summed over the stages and the pooled vector, or
    over the levels of a detector's pyramid."""

    def __init__(
        self, student: Shapes, teacher: Shapes, *, gamma: float, warm_up: float, relative: bool, activated: bool
    ) -> None:
        super().__init__()
        self.gamma, self.warm_up, self.relative, self.activated = gamma, warm_up, relative, activated
        channels = student.imitated_channels(), teacher.imitated_channels()
        self.fusion = FeatureFusion(*channels, teacher.imitated_sizes(), local_branch=False)

    def forward(self, student: AnyOutputs, teacher: AnyOutputs, target: Any, progress: Progress) -> Losses:
        """{"spatial"}."""
        weight = self.gamma * warm_up(progress, self.warm_up)
        maps = student.imitated()
        if self.activated:
            assert isinstance(student, Outputs)  # a detector's recipe is refused
            maps = student.activated()
        return {"spatial": weight * spatial_loss(self.fusion(maps), teacher, relative=self.relative)}


def spatial_loss(fused: list[Tensor], teacher: AnyOutputs, *, relative: bool) -> Tensor:
    """HCL of each fused level against the teacher's map (pre-activation) and pooled vector, summed.

    relative: of maps in units of the teacher's spread (`in_spreads`)."""
    pairs = zip(fused, teacher.imitated(), strict=True)
    losses = [hierarchical_context_loss(*(in_spreads(*pair) if relative else pair)) for pair in pairs]
    return sum(losses[1:], start=losses[0])
