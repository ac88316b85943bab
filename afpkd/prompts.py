"""Adaptive frequency prompt module: learned prompts that mark, pixel by pixel, what matters in each band of a teacher.

Phase 1 (`refine`): prompts interact with the wavelet bands *inside* the frozen teacher while they are fine-tuned.
Phase 2 (`pixel_masks`): the fixed prompts and the teacher's bands give the mask of the pixels of interest.

For one band R of a level, prompts P (T tokens, C channels) give logits M = P R / sqrt(C) and masks m = sigmoid(M)
(FreeKD, Zhang et al., CVPR 2024: R_hat = sum_i sigmoid(M_i) R, T = 2). Adaptive here means a gate a token, computed
from the image's own band energy, g = softmax(W mean|R| + b), so that R_hat = 2 sum_i g_i m_i R. With the prompts near
zero every mask is 1/2 and the refined band is the band itself, for every T: the frozen teacher starts unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afpkd.losses import token_overlap
from afpkd.models.outputs import Refine, Shapes
from afpkd.position import PositionWeight
from afpkd.record import Json
from afpkd.wavelet import band_names, haar_dwt, haar_idwt, num_scales

PROMPT_STD = 0.01  # FreeKD's released code


class BandPrompts(nn.Module):
    """Prompts of all bands that share a scale: `orientations` bands, `tokens` prompts each, over `channels`."""

    def __init__(self, orientations: int, channels: int, tokens: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(PROMPT_STD * torch.randn(orientations, tokens, channels))
        self.gate_weight = nn.Parameter(torch.zeros(orientations, tokens, channels))
        self.gate_bias = nn.Parameter(torch.zeros(orientations, tokens))

    def forward(self, bands: Tensor) -> tuple[Tensor, Tensor]:
        """Bands N, C, O, h, w -> (gates N, O, T summing to 1 over T, token masks N, O, T, h, w in 0..1)."""
        logits = torch.einsum("otc,ncohw->nothw", self.prompts, bands)
        energy = bands.abs().mean(dim=(-2, -1))
        gates = torch.einsum("otc,nco->not", self.gate_weight, energy) + self.gate_bias
        return torch.softmax(gates, dim=-1), torch.sigmoid(logits / bands.shape[1] ** 0.5)


def pixel_mask(gates: Tensor, token_masks: Tensor) -> Tensor:
    """w = sum_i g_i m_i, the pixels of interest of each band: N, O, h, w in 0..1."""
    return torch.einsum("not,nothw->nohw", gates, token_masks)


class LevelPrompts(nn.Module):
    """Prompts of one level of the teacher: one `BandPrompts` for the low band and one a scale of details."""

    def __init__(self, channels: int, scales: int, tokens: int) -> None:
        super().__init__()
        self.scales = scales
        groups = [BandPrompts(1 if group == 0 else 3, channels, tokens) for group in range(scales + 1)]
        self.groups = nn.ModuleList(groups)

    def pixel_masks(self, bands: list[Tensor]) -> list[Tensor]:
        """Masks N, O, h, w of each group of `haar_dwt` bands."""
        return [pixel_mask(*group(band)) for group, band in zip(self.groups, bands, strict=True)]

    def refined(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return (F_hat = IDWT(2 w R), the mean overlap of the tokens' masks over the bands)."""
        bands = haar_dwt(feature, self.scales)
        refined, overlaps = [], []
        for group, band in zip(self.groups, bands, strict=True):
            gates, masks = group(band)
            refined.append(2 * pixel_mask(gates, masks).unsqueeze(1) * band)
            overlaps.append(token_overlap(masks))  # a value a band: O of them
        size = (feature.shape[-2], feature.shape[-1])
        return haar_idwt(refined, size), torch.cat(overlaps).mean()


class FrequencyPrompts(nn.Module):
    """All that phase 1 learns about one teacher: prompts and position weights of every level that has bands.

    Levels whose maps are too small for a wavelet (2x2, 1x1) have no prompts and are left to the spatial loss.
    """

    def __init__(self, teacher: Shapes, *, tokens: int = 2, scales: int = 3) -> None:
        super().__init__()
        self.level_scales = [num_scales(size, scales) for size in teacher.sizes]
        banded = [level for level, found in enumerate(self.level_scales) if found]
        next_channels = [*teacher.channels[1:], teacher.channels[-1]]
        self.levels = nn.ModuleDict(
            {str(i): LevelPrompts(teacher.channels[i], self.level_scales[i], tokens) for i in banded}
        )
        self.positions = nn.ModuleDict({str(i): PositionWeight(teacher.channels[i], next_channels[i]) for i in banded})

    def banded_levels(self) -> list[int]:
        """The levels that have wavelet bands, shallow to deep."""
        return [int(name) for name in self.levels]

    def pixel_masks(self, level: int, bands: list[Tensor]) -> list[Tensor]:
        """The pixels of interest in the teacher's `bands` of `level`: N, O, h, w a group."""
        prompts = self.levels[str(level)]
        assert isinstance(prompts, LevelPrompts)
        return prompts.pixel_masks(bands)

    def position_weight(self, level: int, features: list[Tensor]) -> Tensor:
        """omega of `level`, N, C with mean 1, from this level's map and the next deeper one (the last: itself)."""
        following = features[min(level + 1, len(features) - 1)]
        omega: Tensor = self.positions[str(level)](features[level], following)
        return omega

    def refiner(self, clean: list[Tensor], overlaps: list[Tensor]) -> Refine:
        """The `refine` of a teacher's forward pass: F -> omega * IDWT(2 w R); appends each level's mask overlap.

        clean: the features of an unrefined pass over the same images, from which omega is computed (omega of a level
        looks at the next deeper one, which does not exist yet while this level is refined).
        """

        def refine(level: int, feature: Tensor) -> Tensor:
            if not self.level_scales[level]:
                return feature
            prompts = self.levels[str(level)]
            assert isinstance(prompts, LevelPrompts)
            refined, overlap = prompts.refined(feature)
            overlaps.append(overlap)
            return self.position_weight(level, clean)[:, :, None, None] * refined

        return refine


def mask_statistics(prompts: FrequencyPrompts, features: list[Tensor]) -> list[Json]:
    """Mean and relative spatial spread (std / mean over the pixels of an image) of each level's and band's mask.

    A spread near 0 is a constant mask: the prompt marks nothing.
    """
    rows = []
    for level in prompts.banded_levels():
        scales = prompts.level_scales[level]
        with torch.no_grad():
            masks = prompts.pixel_masks(level, haar_dwt(features[level], scales))
        bands = [band for mask in masks for band in mask.flatten(2).unbind(1)]  # each N, h w
        for name, band in zip(band_names(scales), bands, strict=True):
            spread = (band.std(dim=1) / band.mean(dim=1)).mean()
            rows.append({"level": level, "band": name, "mean": float(band.mean()), "spread": float(spread)})
    return rows
