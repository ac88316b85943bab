"""ReviewKD: Chen et al., "Distilling knowledge via knowledge review" (CVPR 2021)."""

from __future__ import annotations

from torch import Tensor

from afpkd.distillers.distiller import Distiller, Losses, pooled_map
from afpkd.fusion import FeatureFusion
from afpkd.losses import hierarchical_context_loss, warm_up
from afpkd.models.outputs import Outputs, Shapes


class ReviewKD(Distiller):
    """gamma x the HCL of fused student features against the teacher's, summed over the stages and the pooled vector."""

    def __init__(self, student: Shapes, teacher: Shapes, *, gamma: float, warm_up: float) -> None:
        super().__init__()
        self.gamma, self.warm_up = gamma, warm_up
        self.fusion = fusion_between(student, teacher, local_branch=False)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> Losses:
        """{"spatial"}."""
        fused = self.fusion([*student.features, pooled_map(student)])
        return {"spatial": self.gamma * warm_up(progress, self.warm_up) * spatial_loss(fused, teacher)}


def fusion_between(student: Shapes, teacher: Shapes, *, local_branch: bool) -> FeatureFusion:
    """A fusion module over the stages and the pooled vector of a pair."""
    sizes = [*teacher.sizes, (1, 1)]
    channels = [*student.channels, student.pooled], [*teacher.channels, teacher.pooled]
    return FeatureFusion(*channels, sizes, local_branch=local_branch)


def spatial_loss(fused: list[Tensor], teacher: Outputs) -> Tensor:
    """HCL of each fused level against the teacher's map (pre-activation) and pooled vector, summed."""
    targets = [*teacher.features, pooled_map(teacher)]
    losses = [hierarchical_context_loss(ours, target) for ours, target in zip(fused, targets, strict=True)]
    return sum(losses[1:], start=losses[0])
