"""AFPKD: Zhang et al., "Knowledge distillation with adaptive frequency prompting" (The Computer Journal 68(11), 2025).

    L = CE + r (mu L_freq + gamma L_spatial [+ kappa KL]),   r = the warm-up ramp
    L_freq = mean over levels and bands of  sum omega_c w_p |a - b| / (C sum w)

a, b: wavelet bands of the teacher's map and of the fused student's; w: the prompts' pixel mask; omega: the position
weights of both, multiplied. Only this file knows how the parts meet; each part is a file of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afpkd.distillers.distiller import Distiller, Losses, pooled_map
from afpkd.distillers.reviewkd import fusion_between, spatial_loss
from afpkd.losses import frequency_loss, soft_target_loss, warm_up
from afpkd.models.outputs import Outputs, Shapes
from afpkd.position import unit_mean
from afpkd.prompts import FrequencyPrompts
from afpkd.wavelet import haar_dwt


class AFPKD(Distiller):
    """The student side (fusion module, trained) and the teacher side (`prompts`, frozen)."""

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
        warm_up: float,
    ) -> None:
        super().__init__()
        self.mu, self.gamma, self.kappa, self.temperature, self.warm_up = mu, gamma, kappa, temperature, warm_up
        self.fusion = fusion_between(student, teacher, local_branch=True)
        # Not a submodule: like the teacher, prompts are frozen and never part of the student's checkpoint.
        self._frozen = (prompts.requires_grad_(False).eval(),)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: float) -> Losses:
        """{"frequency", "spatial"} and, with kappa > 0, {"kd"}."""
        fused = self.fusion([*student.features, pooled_map(student)])
        losses = {}
        if self.mu:
            losses["frequency"] = self.mu * self._frequency(fused[:-1], teacher.features)
        if self.gamma:
            losses["spatial"] = self.gamma * spatial_loss(fused, teacher)
        if self.kappa:
            losses["kd"] = self.kappa * soft_target_loss(student.logits, teacher.logits, self.temperature)
        ramp = warm_up(progress, self.warm_up)
        return {name: ramp * loss for name, loss in losses.items()}

    def _frequency(self, fused: list[Tensor], features: list[Tensor]) -> Tensor:
        (prompts,) = self._frozen
        losses = []
        for level in prompts.banded_levels():
            scales = prompts.level_scales[level]
            with torch.no_grad():
                masks = prompts.pixel_masks(level, haar_dwt(features[level], scales))
                omega = self._channel_weight(level, fused, features)
            # The transform is linear: the bands' difference is the bands of the difference, one transform for two.
            difference = haar_dwt(fused[level] - features[level], scales)
            losses.append(frequency_loss(difference, masks, omega))
        return torch.stack(losses).mean()

    def _channel_weight(self, level: int, fused: list[Tensor], features: list[Tensor]) -> Tensor:
        """omega_r = omega_t * omega_s with mean 1 (FreeKD); the student's share sends no gradient."""
        (prompts,) = self._frozen
        return unit_mean(prompts.position_weight(level, features) * prompts.position_weight(level, fused))
