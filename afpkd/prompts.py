"""Adaptive frequency prompt module: learned prompts that mark, pixel by pixel, what matters in each band of a teacher.

Phase 1 (`refiner`): prompts interact with the wavelet bands *inside* the frozen teacher while they are fine-tuned.
Phase 2 (`pixel_masks`): the fixed prompts and the teacher's bands give the mask of the pixels of interest.

For one band R of a level, T prompts P_i (C channels each) give logits M_i = P_i R / sqrt(C), and a gate computed from
the image's own band energy gives an offset a token, o_i = W_i mean|R| min(1, 64 / C) + b_i: what we take *adaptive*
for. Two forms:

    averaged   m_i = sigmoid(M_i),  w = sum_i softmax(o)_i m_i,  R_hat = 2 w R
    united     m_i = sigmoid(M_i / s + o_i),  w = 1 - prod_i (1 - m_i),  R_hat = w R  s: amplitude of the band

Two averaged tokens are FreeKD's R_hat = m_1 R + m_2 R, but for sqrt(C) and the gate; united ones are ours.

What a mask drops becomes zero, or (`dropped="swapped"`) what the batch's next image has there. Zero tells nothing where
the next layers normalise, as FCOS's head does with GroupNorm: any constant mask then leaves the teacher's answer as it
is, meets every budget of area, and the masks need not choose.

Averaged tokens (FreeKD, Zhang et al., CVPR 2024) collapse: sigmoid(z) + sigmoid(-z) = 1, so P_2 = -P_1 meets the
overlap penalty with w = 1/2 everywhere, and the mask marks nothing. United tokens cannot: a pixel counts where *any*
token says so, and P_2 = -P_1 then marks large details of either sign. Both start with R_hat near R.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from afpkd.errors import UserError
from afpkd.losses import token_overlap
from afpkd.models.outputs import Refine, Shapes
from afpkd.position import NARROW, PositionWeight
from afpkd.wavelet import haar_dwt, haar_idwt, num_scales

PROMPT_STD = 0.01  # FreeKD's released code
START_LOGIT = 1.0  # two united tokens start with w = 0.93, where the sigmoid still moves

Change = Callable[[list[Tensor]], list[Tensor]]
"""The pixel masks of a level, N, O, h, w a group -> what takes their place."""


class Marked(NamedTuple):
    """What the prompts say of the bands of one scale: token masks N, O, T, h, w and their pixel mask N, O, h, w."""

    tokens: Tensor
    pixels: Tensor


class Moments(NamedTuple):
    """Mean and standard deviation, O values each, of `num` values a band."""

    num: int
    mean: Tensor
    std: Tensor


class BandPrompts(nn.Module):
    """Prompts of all bands that share a scale: `orientations` bands, `tokens` prompts each, over `channels`."""

    amplitude: Tensor

    def __init__(self, orientations: int, channels: int, tokens: int, *, united: bool, gate: bool) -> None:
        super().__init__()
        self.united = united
        self.prompts = nn.Parameter(PROMPT_STD * torch.randn(orientations, tokens, channels))
        self.gate_weight = nn.Parameter(torch.zeros(orientations, tokens, channels)) if gate else None
        start = torch.full((orientations, tokens), START_LOGIT if united else 0.0)
        self.gate_bias = nn.Parameter(start) if gate or united else None
        self.register_buffer("amplitude", torch.ones(orientations))

    def calibrate(self, passes: Sequence[Moments]) -> None:
        """Take the bands' amplitude (standard deviation); averaged tokens have no use for it."""
        if self.united:
            self.amplitude.copy_(pooled(passes).std.clamp_min(1e-6))

    def forward(self, bands: Tensor) -> Marked:
        """Bands N, C, O, h, w -> masks in 0..1."""
        scale = (self.amplitude * bands.shape[1] ** 0.5)[:, None, None]
        logits = torch.einsum("otc,ncohw->nothw", self.prompts / scale, bands)
        offset = self._offset(bands)
        if self.united:
            tokens = torch.sigmoid(logits + offset[..., None, None])
            missed = functools.reduce(torch.mul, (1 - tokens).unbind(dim=2))  # the gradient of prod waits for a GPU
            return Marked(tokens, 1 - missed)
        tokens = torch.sigmoid(logits)
        return Marked(tokens, torch.einsum("not,nothw->nohw", torch.softmax(offset, dim=-1), tokens))

    def _offset(self, bands: Tensor) -> Tensor:
        """The gate's logits of each image, N, O, T."""
        num, (orientations, tokens, _) = len(bands), self.prompts.shape
        offset = bands.new_zeros(num, orientations, tokens)
        if self.gate_weight is not None:
            # Adam's first steps move all channels' weights alike, and a sum by their number: over 512 the second leaves
            # no pixel of any mask, and no gradient
            energy = bands.abs().mean(dim=(-2, -1)) / self.amplitude * min(1.0, NARROW / bands.shape[1])
            offset = offset + torch.einsum("otc,nco->not", self.gate_weight, energy)
        return offset if self.gate_bias is None else offset + self.gate_bias


class LevelPrompts(nn.Module):
    """Prompts of one level of the teacher: one `BandPrompts` for the low band and one a scale of details."""

    def __init__(self, channels: int, scales: int, tokens: int, *, united: bool, gate: bool) -> None:
        super().__init__()
        self.scales, self.gain = scales, 1.0 if united else 2.0
        groups = [1] + [3] * scales
        self.groups = nn.ModuleList(BandPrompts(o, channels, tokens, united=united, gate=gate) for o in groups)

    def marked(self, bands: list[Tensor]) -> list[Marked]:
        """Masks of each group of `haar_dwt` bands."""
        return [group(band) for group, band in zip(self.groups, bands, strict=True)]

    def calibrate(self, passes: Sequence[list[Moments]]) -> None:
        """Take each band's amplitude from the moments of each group, a list a pass."""
        for group, found in zip(self.groups, zip(*passes, strict=True), strict=True):
            assert isinstance(group, BandPrompts)
            group.calibrate(found)


class Refined(NamedTuple):
    """What phase 1 reads of one level. overlap: mean soft Jaccard of the tokens' masks; areas: mean w of each band."""

    overlap: Tensor
    areas: Tensor


class FrequencyPrompts(nn.Module):
    """All that phase 1 learns about one teacher: prompts and position weights of every level that has bands.

    Levels whose maps are too small for a wavelet (2x2, 1x1) have no prompts and are left to the spatial loss.
    """

    def __init__(
        self,
        teacher: Shapes,
        *,
        tokens: int = 2,
        scales: int = 3,
        united: bool = True,
        gate: bool = True,
        dropped: Literal["zero", "swapped"] = "zero",
    ) -> None:
        super().__init__()
        self.united, self.dropped = united, dropped
        self.level_scales = [num_scales(size, scales) for size in teacher.sizes]
        banded = [level for level, found in enumerate(self.level_scales) if found]
        if not banded:
            sizes = ", ".join(f"{height}x{width}" for height, width in teacher.sizes)
            raise UserError(
                "E_NETWORK_FIT",
                f"no map of the teacher has the 4x4 pixels that a wavelet needs ({sizes}): use larger images",
            )
        following = [*teacher.channels[1:], teacher.channels[-1]]
        self.levels = nn.ModuleDict()
        self.positions = nn.ModuleDict()
        for i in banded:
            channels = teacher.channels[i]
            self.levels[str(i)] = LevelPrompts(channels, self.level_scales[i], tokens, united=united, gate=gate)
            self.positions[str(i)] = PositionWeight(channels, following[i], standardise=united)

    def banded_levels(self) -> list[int]:
        """The levels that have wavelet bands, shallow to deep."""
        return [int(name) for name in self.levels]

    def level(self, level: int) -> LevelPrompts:
        """The prompts of a banded level."""
        prompts = self.levels[str(level)]
        assert isinstance(prompts, LevelPrompts)
        return prompts

    def calibrate(self, passes: Iterable[list[Tensor]]) -> None:
        """Take the amplitude of each band from the teacher's features of some images, once, before phase 1.

        passes: the features of some of the images each, so that those of all need not be there at once.
        """
        found: dict[int, list[list[Moments]]] = {level: [] for level in self.banded_levels()}
        for features in passes:
            for level, seen in found.items():
                seen.append([moments(bands) for bands in haar_dwt(features[level], self.level_scales[level])])
        for level, seen in found.items():
            self.level(level).calibrate(seen)

    def pixel_masks(self, level: int, bands: list[Tensor]) -> list[Tensor]:
        """The pixels of interest in the teacher's `bands` of `level`: N, O, h, w a group."""
        return [marked.pixels for marked in self.level(level).marked(bands)]

    def position_weight(self, level: int, features: list[Tensor]) -> Tensor:
        """omega of `level`, N, C, from this level's map and the next deeper one (the last: itself)."""
        following = features[min(level + 1, len(features) - 1)]
        omega: Tensor = self.positions[str(level)](features[level], following)
        return omega

    def refiner(self, clean: list[Tensor], reports: list[Refined], change: Change | None = None) -> Refine:
        """The `refine` of a teacher's forward pass: F -> omega * IDWT(R_hat); appends what each level reports.

        clean: the features of an unrefined pass over the same images, from which omega is computed (omega of a level
        looks at the next deeper one, which does not exist yet while this level is refined).
        change: what to put in the place of each level's pixel masks (controls: shuffled or constant ones).
        """

        def refine(level: int, feature: Tensor) -> Tensor:
            scales = self.level_scales[level]
            if not scales:
                return feature
            bands = haar_dwt(feature, scales)
            marked = self.level(level).marked(bands)
            masks = [found.pixels for found in marked]
            if change is not None:
                masks = change(masks)
            omega = self.position_weight(level, clean)
            overlap = torch.cat([token_overlap(found.tokens) for found in marked]).mean()
            areas = torch.cat([mask.mean(dim=(0, 2, 3)) for mask in masks])
            reports.append(Refined(overlap, areas))
            gain = self.level(level).gain
            refined = [gain * mask.unsqueeze(1) * band for mask, band in zip(masks, bands, strict=True)]
            if self.dropped == "swapped":
                others = [(1 - mask.unsqueeze(1)) * band.roll(1, 0) for mask, band in zip(masks, bands, strict=True)]
                refined = [kept + other for kept, other in zip(refined, others, strict=True)]
            return omega[:, :, None, None] * haar_idwt(refined, (feature.shape[-2], feature.shape[-1]))

        return refine


def moments(bands: Tensor) -> Moments:
    """Of each of the bands N, C, O, h, w."""
    values, axes = bands.float(), (0, 1, 3, 4)
    return Moments(bands[:, :, 0].numel(), values.mean(dim=axes), values.std(dim=axes))


def pooled(passes: Sequence[Moments]) -> Moments:
    """Of the values of all passes, from the moments of each. Of one pass they are its own."""
    nums = torch.tensor([each.num for each in passes], dtype=torch.float64, device=passes[0].mean.device)[:, None]
    means, stds = (torch.stack(column).double() for column in list(zip(*passes, strict=True))[1:])
    mean = (nums * means).sum(dim=0) / nums.sum()
    squares = (nums - 1) * stds.square() + nums * (means - mean).square()
    std = (squares.sum(dim=0) / (nums.sum() - 1)).sqrt()
    return Moments(int(nums.sum()), mean.float(), std.float())
