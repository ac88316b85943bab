"""ShuffleNet (the first) for 32x32 images, the "ShuffleNetV1" of the distillation literature.

Zhang et al., "ShuffleNet: an extremely efficient convolutional neural network for mobile devices" (CVPR 2018), table 1
with 3 groups, as the CRD benchmark (Tian et al., ICLR 2020) has it, and unlike the paper: the stem is a 1x1
convolution without stride or max-pool, a stage's first bottleneck is a quarter of the channels it adds (not of the
stage's), and a ReLU follows the depthwise convolution. Weights start as torch starts them, as in the benchmark.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled

STEM_CHANNELS = 24
NUM_GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))
"""(channels, units) of each stage."""


class ShuffleNetV1(nn.Module):
    """A 1x1 stem and three stages, each at half the resolution of the one before.

    Input N, in_channels, H, W with H, W >= 8; features at half, quarter and eighth resolution, before the stage's last
    ReLU.
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = _stage(STEM_CHANNELS, *STAGES[0], first_groups=1)  # 24 channels are too few to group
        self.layer2 = _stage(STAGES[0][0], *STAGES[1], first_groups=NUM_GROUPS)
        self.layer3 = _stage(STAGES[1][0], *STAGES[2], first_groups=NUM_GROUPS)
        self.linear = nn.Linear(STAGES[2][0], num_classes)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's pre-activation feature on its way (see `Refine`)."""
        x = F.relu(self.bn1(self.conv1(x)))
        features = []
        for level, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            for unit in stage[:-1]:
                x = F.relu(unit(x))
            feature = stage[-1](x)
            if refine is not None:
                feature = refine(level, feature)
            features.append(feature)
            x = F.relu(feature)
        pooled = average_pooled(x)
        return Outputs(self.linear(pooled), features, pooled, x, self.linear)


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; returns its result *before* the ReLU.

    A unit that strides is joined to its average-pooled input (it computes the channels that are missing), another is
    added to it. `groups`: of the first 1x1 convolution.
    """

    def __init__(self, in_channels: int, channels: int, groups: int, *, strides: bool) -> None:
        super().__init__()
        self.groups, self.strides = groups, strides
        computed = channels - in_channels if strides else channels
        mid = computed // 4
        self.conv1 = nn.Conv2d(in_channels, mid, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride=2 if strides else 1, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, computed, 1, groups=NUM_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(computed)

    def forward(self, x: Tensor) -> Tensor:
        """N, in_channels, H, W -> N, channels, H, W, or half of H and W where it strides; before the ReLU."""
        hidden = shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        computed: Tensor = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(hidden)))))
        if self.strides:
            return torch.cat([computed, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        return computed + x


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle: channel i of group g becomes channel i * groups + g, so that each next group sees them all."""
    if groups == 1:
        return x
    channels, height, width = x.shape[1:]
    grouped = x.reshape(
        -1, groups, channels // groups, height, width
    )  # -1: the batch stays dynamic in an exported file
    return grouped.transpose(1, 2).flatten(1, 2)


def _stage(in_channels: int, channels: int, num_units: int, *, first_groups: int) -> nn.Sequential:
    first = Unit(in_channels, channels, first_groups, strides=True)
    others = (Unit(channels, channels, NUM_GROUPS, strides=False) for _ in range(num_units - 1))
    return nn.Sequential(first, *others)
