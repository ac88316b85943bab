"""The one contract of every distillation method."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from afpkd.losses import Progress

Losses = dict[str, Tensor]


class Distiller(nn.Module):
    """What a student learns from its teacher: named losses, and the adapters that only training needs.

    A subclass takes (student: Shapes, teacher: Shapes, **options); one that declares `uses_prompts` in its options also
    takes the frozen `prompts`. An option that is off gives no loss rather than a zero one, so that the guards of the
    training loop can tell a switch that does nothing.
    """

    task_weight: float = 1.0
    uses_teacher: ClassVar[bool] = True
    """Whether it looks at the teacher's outputs: else no step takes a pass of it."""

    def forward(self, student: Any, teacher: Any, target: Any, progress: Progress) -> Losses:
        """Weighted losses by name, of the `Outputs` of both (of `Detections`, where it only looks at features).

        `target` is what the task compares with. `progress`: 0..1 of the schedule, a tensor where steps are recorded
        (`afpkd.cuda_graph`): compute with it, and ask it nothing. What is kept between steps lies in buffers: Python's
        own numbers stand still then.
        """
        raise NotImplementedError
