"""No distillation: the control that every other number is compared with."""

from __future__ import annotations

from typing import Any, ClassVar

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.losses import Progress
from afpkd.models.outputs import AnyOutputs, Shapes


class NoDistillation(Distiller):
    """The task loss alone."""

    uses_teacher: ClassVar[bool] = False

    def __init__(self, student: Shapes, teacher: Shapes) -> None:
        super().__init__()

    def forward(self, student: AnyOutputs, teacher: AnyOutputs, target: Any, progress: Progress) -> Losses:
        """No losses."""
        return {}
