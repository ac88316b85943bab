"""ResNet-50 for 32x32 images, a teacher of the distillation literature.

He et al., "Deep residual learning for image recognition" (CVPR 2016), table 1, as the CRD benchmark (Tian et al., ICLR
2020) has it, and unlike the paper: a 3x3 stem without stride or max-pool, and a bottleneck strides in its 3x3
convolution. Parameter names are the benchmark's, so that its public teacher loads unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled
from afpkd.models.resnet_cifar import initialise

EXPANSION = 4
"""A bottleneck gives so many times the channels of its 3x3 convolution."""


class ResNet50(nn.Module):
    """Four stages of 3, 4, 6 and 3 bottlenecks.

    Input N, in_channels, H, W with H, W >= 8; features at full, half, quarter and eighth resolution, before the stage's
    last ReLU.
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's pre-activation feature on its way (see `Refine`)."""
        x = F.relu(self.bn1(self.conv1(x)))
        features = []
        for level, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for block in stage[:-1]:
                x = F.relu(block(x))
            feature = stage[-1](x)
            if refine is not None:
                feature = refine(level, feature)
            features.append(feature)
            x = F.relu(feature)
        pooled = average_pooled(x)
        return Outputs(self.linear(pooled), features, pooled, x, self.linear)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut; returns the sum *before* its ReLU."""

    def __init__(self, in_channels: int, mid: int, stride: int) -> None:
        super().__init__()
        channels = EXPANSION * mid
        self.conv1 = nn.Conv2d(in_channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = None
        if in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """N, in_channels, H, W -> N, 4 mid, H / stride, W / stride, before the ReLU."""
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(x)
        hidden = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        residual: Tensor = self.bn3(self.conv3(hidden))
        return residual + shortcut


def _stage(in_channels: int, mid: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, mid, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * mid, mid, 1) for _ in range(num_blocks - 1)))
