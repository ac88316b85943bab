"""Feature fusion module: multi-level student features fused top-down and brought to the teacher's shapes.

AFPKD fuses "multi-level features hierarchically"; the mechanism is ReviewKD's attention-based fusion (ABF; Chen et al.,
CVPR 2021, figure 3), walked from the deepest level to the shallowest. A local branch may reinforce "the local
structure" (AFPKD, abstract) and is ours in form: a depthwise 3x3 convolution beside the fused map. Used in training
only: the student that is exported has none of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]

MOST_CHANNELS = 512
"""In which levels are mixed, as in ReviewKD; a student of fewer channels at its deepest level takes these."""


def matched_levels(student_sizes: list[Size], teacher_sizes: list[Size]) -> list[int]:
    """For each level of the teacher the level of the student that imitates it.

    As many levels: one by one, as ReviewKD has it. Else those whose sizes fit best (least sum of the ratios' |log2|,
    in order, the deeper ones where that leaves a choice); a student with fewer levels lends some of them twice.
    """
    num, most = len(teacher_sizes), len(student_sizes)
    if num == most:
        return list(range(num))
    choose = combinations if most > num else combinations_with_replacement

    def misfit(levels: Sequence[int]) -> tuple[float, int]:
        pairs = zip(levels, teacher_sizes, strict=True)
        sides = [math.log2(min(student_sizes[level]) / min(size)) for level, size in pairs]
        return round(sum(map(abs, sides)), 6), -sum(levels)

    return min(map(list, choose(range(most), num)), key=misfit, default=[])


class FeatureFusion(nn.Module):
    """Fuse student maps (shallow to deep) and give one map a level in the teacher's channels and size.

    Args:
        student_channels, teacher_channels: channels of each level, shallow to deep.
        teacher_sizes: (H, W) of the teacher's map at each level.
        local_branch: add the depthwise branch (AFPKD); without it this is ReviewKD's ABF.
    """

    def __init__(
        self,
        student_channels: list[int],
        teacher_channels: list[int],
        teacher_sizes: list[Size],
        *,
        local_branch: bool,
    ) -> None:
        assert len(student_channels) == len(teacher_channels) == len(teacher_sizes)
        super().__init__()
        mid = min(MOST_CHANNELS, student_channels[-1])
        last = len(student_channels) - 1
        self.levels = nn.ModuleList(
            FusionLevel(
                student, teacher, mid, size, has_deeper=level < last, local_branch=local_branch and size > (1, 1)
            )
            for level, (student, teacher, size) in enumerate(
                zip(student_channels, teacher_channels, teacher_sizes, strict=True)
            )
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Student maps N, C_s, H_s, W_s -> N, C_t, H_t, W_t a level, shallow to deep."""
        outputs: list[Tensor] = []
        deeper: Tensor | None = None
        for level, feature in zip(reversed(self.levels), reversed(features), strict=True):
            output, deeper = level(feature, deeper)
            outputs.insert(0, output)
        return outputs

    def last_norms(self) -> list[nn.BatchNorm2d]:
        """Where each level's map comes from, shallow to deep."""
        return [_last_norm(level.output) for level in self.levels if isinstance(level, FusionLevel)]


class LevelAdapters(nn.Module):
    """A 1x1 convolution and BatchNorm a level, nothing fused: the control of the fusion module, and in `freekd`.

    Built as the projections of the fusion module are; FreeKD's own adapter is a plain 1x1 convolution with a bias.
    """

    def __init__(self, student_channels: list[int], teacher_channels: list[int], teacher_sizes: list[Size]) -> None:
        super().__init__()
        self.sizes = teacher_sizes
        pairs = zip(student_channels, teacher_channels, strict=True)
        self.levels = nn.ModuleList(_conv_bn(student, teacher, kernel=1) for student, teacher in pairs)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Student maps N, C_s, H_s, W_s -> N, C_t, H_t, W_t a level, shallow to deep."""
        levels = zip(self.levels, features, self.sizes, strict=True)
        return [_resized(level(feature), size) for level, feature, size in levels]

    def last_norms(self) -> list[nn.BatchNorm2d]:
        """Where each level's map comes from, shallow to deep."""
        return [_last_norm(level) for level in self.levels]


class FusionLevel(nn.Module):
    """One level: project, mix with the deeper level by two attention maps, refine locally, project to the teacher."""

    def __init__(
        self, student: int, teacher: int, mid: int, size: Size, *, has_deeper: bool, local_branch: bool
    ) -> None:
        super().__init__()
        self.size = size
        self.project = _conv_bn(student, mid, kernel=1)
        self.attention = nn.Conv2d(2 * mid, 2, 1) if has_deeper else None
        self.local = _local_branch(mid) if local_branch else None
        self.output = _conv_bn(mid, teacher, kernel=3)

    def forward(self, feature: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (map in the teacher's shape, map N, mid, H_t, W_t that is passed up to the shallower level)."""
        x = self.project(feature)
        if self.attention is not None:
            assert deeper is not None
            own, from_deeper = torch.sigmoid(self._attention(self.attention, x, deeper)).chunk(2, dim=1)
            x = own * x + from_deeper * F.interpolate(deeper, x.shape[-2:], mode="nearest")
        if self.local is not None:
            x = x + self.local(x)
        x = _resized(x, self.size)
        return self.output(x), x

    @staticmethod
    def _attention(convolution: nn.Conv2d, x: Tensor, deeper: Tensor) -> Tensor:
        """The 1x1 convolution of concat(x, upsampled deeper), as a sum over its two halves: nothing is concatenated,
        and the deeper half is computed before it is upsampled."""
        ours, theirs = torch.split(convolution.weight, x.shape[1], dim=1)
        from_deeper = F.interpolate(F.conv2d(deeper, theirs), x.shape[-2:], mode="nearest")
        return F.conv2d(x, ours, convolution.bias) + from_deeper


def _resized(x: Tensor, size: Size) -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size, mode="nearest")


def _conv_bn(in_channels: int, out_channels: int, *, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)  # as ReviewKD does
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def _last_norm(adapter: nn.Module) -> nn.BatchNorm2d:
    assert isinstance(adapter, nn.Sequential)
    norm = adapter[-1]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def _local_branch(channels: int) -> nn.Sequential:
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(channels))
