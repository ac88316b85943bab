"""The frequency loss of all levels, with fixed prompts: shared by AFPKD and FreeKD."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from afpkd.control_masks import banded, shuffled
from afpkd.losses import frequency_loss, in_spreads
from afpkd.position import unit_mean
from afpkd.prompts import FrequencyPrompts
from afpkd.wavelet import haar_dwt


class FrequencyTerm:
    """Mean over levels of `frequency_loss` between the teacher's maps and the student's, adapted to their shapes.

    Not a module: like the teacher, prompts are frozen and never part of the student's checkpoint.
    mask, bands, position_weight, relative: see `AfpkdOptions`; for `untrained` masks pass untuned prompts.
    """

    def __init__(
        self,
        prompts: FrequencyPrompts,
        *,
        normalise: Literal["level", "band", "none"],
        mask: Literal["prompts", "untrained", "shuffled", "banded", "constant"] = "prompts",
        bands: Literal["all", "low", "details"] = "all",
        position_weight: bool = True,
        relative: bool = False,
    ) -> None:
        self.prompts = prompts.requires_grad_(False).eval()
        self.normalise, self.mask = normalise, mask
        self.position_weight, self.relative = position_weight, relative
        self.chosen = {"all": slice(None), "low": slice(0, 1), "details": slice(1, None)}[bands]

    def __call__(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Maps a level, shallow to deep, N, C, H, W each, student's in the teacher's shapes -> the loss."""
        losses = []
        for level in self.prompts.banded_levels():
            scales = self.prompts.level_scales[level]
            with torch.no_grad():
                masks = self._masks(level, haar_dwt(teacher[level], scales))
                omega = self._channel_weight(level, student, teacher)
            # The transform is linear: the bands' difference is the bands of the difference, one transform for two.
            pair = student[level], teacher[level]
            ours, theirs = in_spreads(*pair) if self.relative else pair
            difference = haar_dwt(ours - theirs, scales)[self.chosen]
            losses.append(frequency_loss(difference, masks[self.chosen], omega, normalise=self.normalise))
        return torch.stack(losses).mean()

    def _masks(self, level: int, bands: list[Tensor]) -> list[Tensor]:
        if self.mask == "constant":
            return [torch.ones_like(band[:, 0]) for band in bands]
        masks = self.prompts.pixel_masks(level, bands)
        change = {"shuffled": shuffled, "banded": banded}.get(self.mask)
        return change(masks) if change else masks

    def _channel_weight(self, level: int, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """omega_r = omega_t * omega_s with mean 1 (FreeKD); the student's share sends no gradient."""
        if not self.position_weight:
            return torch.ones_like(teacher[level][:, :, 0, 0])
        ours, theirs = (self.prompts.position_weight(level, features) for features in (student, teacher))
        return unit_mean(ours * theirs)
