"""MobileNetV2 at half width for 32x32 images, the "MobileNetV2" of the distillation literature.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (CVPR 2018), table 2, with expansion 6 and
width 0.5, as the CRD benchmark (Tian et al., ICLR 2020) has it, and unlike the paper: the second stage keeps its
resolution (stride 1), the block with expansion 1 has its expanding 1x1 convolution nevertheless, channels are halved
without rounding to multiples of 8, ReLU instead of ReLU6, no dropout. The last convolution keeps 1,280 channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled

STEM_CHANNELS = 16
LAST_CHANNELS = 1280

GROUPS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
"""(expansion t, channels c, blocks n, first stride s) of table 2, channels halved."""

FEATURE_GROUPS = (1, 2, 4, 6)
"""The groups whose results are features: the last of each resolution."""


class MobileNetV2(nn.Module):
    """Seven groups of inverted residuals between a striding 3x3 stem and a widening 1x1 convolution.

    Input N, in_channels, H, W with H, W >= 16. The features are the linear bottlenecks that end each resolution (half,
    quarter, eighth, sixteenth). No ReLU follows a bottleneck: a feature goes on as it is, negative values and all.
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_bn(in_channels, STEM_CHANNELS, kernel=3, stride=2))
        self.blocks = nn.ModuleList()
        before = STEM_CHANNELS
        for expansion, channels, num_blocks, stride in GROUPS:
            first = InvertedResidual(before, channels, expansion, stride)
            others = (InvertedResidual(channels, channels, expansion, 1) for _ in range(num_blocks - 1))
            self.blocks.append(nn.Sequential(first, *others))
            before = channels
        self.conv2 = nn.Sequential(*_conv_bn(before, LAST_CHANNELS, kernel=1))
        self.classifier = nn.Linear(LAST_CHANNELS, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change the feature that ends each resolution on its way (see `Refine`)."""
        x = F.relu(self.conv1(x))
        features: list[Tensor] = []
        for group, blocks in enumerate(self.blocks):
            x = blocks(x)
            if group in FEATURE_GROUPS:
                if refine is not None:
                    x = refine(len(features), x)
                features.append(x)
        x = F.relu(self.conv2(x))
        pooled = average_pooled(x)
        return Outputs(self.classifier(pooled), features, pooled, x, self.classifier)


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel by a 3x3, project linearly; a shortcut where shapes agree."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.conv = nn.Sequential(
            *_conv_bn(in_channels, hidden, kernel=1),
            nn.ReLU(),
            *_conv_bn(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.ReLU(),
            *_conv_bn(hidden, channels, kernel=1),
        )
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """N, in_channels, H, W -> N, channels, H / stride, W / stride, without an activation."""
        projected: Tensor = self.conv(x)
        return x + projected if self.has_shortcut else projected


def _conv_bn(in_channels: int, channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
