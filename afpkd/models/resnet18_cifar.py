"""ResNet-18 for small images (32x32, 64x64), the teacher of the Tiny-ImageNet tables.

He et al., "Deep residual learning for image recognition" (CVPR 2016), table 1, but for its stem, which is a 3x3
convolution without stride or max-pool, as mdistiller and most Tiny-ImageNet work have it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled
from afpkd.models.resnet_cifar import BasicBlock, initialise

WIDTHS = (64, 128, 256, 512)


class ResNet18(nn.Module):
    """Four stages of two basic blocks.

    Input N, in_channels, H, W with H, W >= 8; features at full, half, quarter and eighth resolution, before the stage's
    last ReLU.
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        befores = (WIDTHS[0], *WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(before, width, 1 if level == 0 else 2), BasicBlock(width, width, 1))
            for level, (before, width) in enumerate(zip(befores, WIDTHS, strict=False))
        )
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's pre-activation feature on its way (see `Refine`)."""
        x = F.relu(self.bn1(self.conv1(x)))
        features: list[Tensor] = []
        for level, stage in enumerate(self.stages):
            assert isinstance(stage, nn.Sequential)
            feature: Tensor = stage[1](F.relu(stage[0](x)))
            if refine is not None:
                feature = refine(level, feature)
            features.append(feature)
            x = F.relu(feature)
        pooled = average_pooled(x)
        return Outputs(self.fc(pooled), features, pooled, x, self.fc)
