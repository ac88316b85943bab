"""ShuffleNetV2 x1 for 32x32 images, as the distillation literature uses it.

Ma et al., "ShuffleNet V2: practical guidelines for efficient CNN architecture design" (ECCV 2018), table 5, 1x, as the
CRD benchmark (Tian et al., ICLR 2020) has it: the paper's network but for its stem, which is a 1x1 convolution without
stride or max-pool. Weights start as torch starts them, as in the benchmark.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled
from afpkd.models.shufflenet_v1 import shuffled

STEM_CHANNELS = 24
LAST_CHANNELS = 1024
STAGES = ((116, 4), (232, 8), (464, 4))
"""(channels, units) of each stage, the unit that strides included."""


class ShuffleNetV2(nn.Module):
    """A 1x1 stem, three stages, each at half the resolution of the one before, and a widening 1x1 convolution.

    Input N, in_channels, H, W with H, W >= 8; features at half, quarter and eighth resolution: the two joined halves of
    a stage's last unit before their ReLU and shuffle. The half that the unit passes by has been rectified a unit
    before, so that the one ReLU leaves it as it is.
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = _stage(STEM_CHANNELS, *STAGES[0])
        self.layer2 = _stage(STAGES[0][0], *STAGES[1])
        self.layer3 = _stage(STAGES[1][0], *STAGES[2])
        self.conv2 = nn.Conv2d(STAGES[2][0], LAST_CHANNELS, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST_CHANNELS)
        self.linear = nn.Linear(LAST_CHANNELS, num_classes)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's pre-activation feature on its way (see `Refine`)."""
        x = F.relu(self.bn1(self.conv1(x)))
        features = []
        for level, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            for unit in stage[:-1]:
                x = shuffled(F.relu(unit(x)), 2)
            feature = stage[-1](x)
            if refine is not None:
                feature = refine(level, feature)
            features.append(feature)
            x = shuffled(F.relu(feature), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        pooled = average_pooled(x)
        return Outputs(self.linear(pooled), features, pooled, x, self.linear)


class StridingUnit(nn.Module):
    """Two branches that each halve the resolution and give half of the channels; before ReLU and shuffle."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.short = nn.Sequential(*_depthwise(in_channels, stride=2), *_pointwise(in_channels, half))
        self.long = _long_branch(in_channels, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """N, in_channels, H, W -> N, channels, H / 2, W / 2, before the ReLU."""
        return torch.cat([self.short(x), self.long(x)], dim=1)


class SplittingUnit(nn.Module):
    """The first half of the channels passes by, the second is computed anew; before ReLU and shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.long = _long_branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """N, channels, H, W, rectified -> the same shape, the second half before its ReLU."""
        passing, taken = x.chunk(2, dim=1)
        return torch.cat([passing, self.long(taken)], dim=1)


def _stage(in_channels: int, channels: int, num_units: int) -> nn.Sequential:
    return nn.Sequential(StridingUnit(in_channels, channels), *(SplittingUnit(channels) for _ in range(num_units - 1)))


def _long_branch(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    pointwise = _pointwise(in_channels, channels)
    return nn.Sequential(*pointwise, nn.ReLU(), *_depthwise(channels, stride=stride), *_pointwise(channels, channels))


def _pointwise(in_channels: int, channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]


def _depthwise(channels: int, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]
