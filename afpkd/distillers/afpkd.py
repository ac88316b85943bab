"""AFPKD: Zhang et al., "Knowledge distillation with adaptive frequency prompting" (The Computer Journal 68(11), 2025).

    L = CE + r (mu L_freq + gamma L_spatial [+ kappa KL]),   r = the warm-up ramp
    L_freq = mean over levels of  sum_b mean(omega w_b |a_b - b_b|) / sum_b mean(w_b)

a, b: wavelet bands of the teacher's map and of the fused student's; w: the prompts' pixel mask; omega: the position
weights of both, multiplied. Only this file knows how the parts meet; each part is a file of its own.

Of the paper the abstract alone is public. It names the parts (frequency prompts, wavelet bands, a position-sensitive
weight of channels, the fusion of levels); every equation here is an inference from its ancestors, FreeKD and ReviewKD.
"""

from __future__ import annotations

from typing import Any

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.distillers.frequency import FrequencyTerm
from afpkd.distillers.reviewkd import spatial_loss
from afpkd.fusion import FeatureFusion, LevelAdapters
from afpkd.losses import Progress, soft_target_loss, standardised, warm_up
from afpkd.models.outputs import AnyOutputs, Shapes
from afpkd.prompts import FrequencyPrompts


class AFPKD(Distiller):
    """The student side (fusion module, trained) and the teacher side (`prompts`, frozen); options: `AfpkdOptions`."""

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        *,
        prompts: FrequencyPrompts,
        mu: float,
        gamma: float,
        kappa: float,
        temperature: float,
        standardise: bool,
        warm_up: float,
        fusion: str,
        local_branch: bool,
        relative: bool,
        **frequency: Any,
    ) -> None:
        super().__init__()
        self.mu, self.gamma, self.kappa, self.temperature, self.warm_up = mu, gamma, kappa, temperature, warm_up
        self.standardise, self.relative = standardise, relative
        shapes = student.imitated_channels(), teacher.imitated_channels(), teacher.imitated_sizes()
        fused = FeatureFusion(*shapes, local_branch=local_branch) if fusion == "top-down" else LevelAdapters(*shapes)
        self.fusion = fused
        self.frequency = FrequencyTerm(prompts, relative=relative, **frequency)

    def forward(self, student: AnyOutputs, teacher: AnyOutputs, target: Any, progress: Progress) -> Losses:
        """{"frequency", "spatial", "kd"}, each where its weight is not 0."""
        fused = self.fusion(student.imitated())
        losses = {}
        if self.mu:
            losses["frequency"] = self.mu * self.frequency(fused[: len(teacher.features)], teacher.features)
        if self.gamma:
            losses["spatial"] = self.gamma * spatial_loss(fused, teacher, relative=self.relative)
        if self.kappa:
            logits = student.logits, teacher.logits
            ours, theirs = map(standardised, logits) if self.standardise else logits
            losses["kd"] = self.kappa * soft_target_loss(ours, theirs, self.temperature)
        ramp = warm_up(progress, self.warm_up)
        return {name: ramp * loss for name, loss in losses.items()}
