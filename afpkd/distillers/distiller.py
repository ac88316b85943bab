"""The one contract of every distillation method."""

from __future__ import annotations

from torch import Tensor, nn

from afpkd.models.outputs import Outputs

Losses = dict[str, Tensor]


class Distiller(nn.Module):
    """What a student learns from its teacher: named losses, and the adapters that only training needs.

    A subclass takes (student: Shapes, teacher: Shapes, **options); one that declares `uses_prompts` in its options also
    takes the frozen `prompts`. An option that is off gives no loss rather than a zero one, so that the guards of the
    training loop can tell a switch that does nothing.
    """

    task_weight: float = 1.0

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> Losses:
        """Weighted losses by name; `target` is what the task compares with, `progress` in 0..1 of the schedule."""
        raise NotImplementedError


def pooled_map(outputs: Outputs) -> Tensor:
    """The pooled vector as a 1x1 map N, C, 1, 1: ReviewKD's deepest level."""
    return outputs.pooled[:, :, None, None]
