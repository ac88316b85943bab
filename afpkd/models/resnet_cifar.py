"""ResNets for 32x32 images, as the distillation literature uses them.

He et al., "Deep residual learning for image recognition" (CVPR 2016), section 4.2: depth = 6 n + 2, three stages of n
basic blocks. Names, widths and the 1x1 projection shortcut are those of the CRD benchmark (Tian et al., ICLR 2020), so
that published tables compare; the parameter names are torchvision's, so that public checkpoints load unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled


class ResNet(nn.Module):
    """`depth` layers; `widths` = channels of the stem and of the three stages.

    Input N, in_channels, H, W with H, W >= 8; features at full, half and quarter resolution.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], *, num_classes: int, in_channels: int) -> None:
        assert depth % 6 == 2, "a basic-block CIFAR ResNet has 6 n + 2 layers"
        super().__init__()
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], num_blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], num_blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], num_blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's pre-activation feature on its way (see `Refine`)."""
        x = F.relu(self.bn1(self.conv1(x)))
        features = []
        for level, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            for block in stage[:-1]:
                x = F.relu(block(x))
            feature = stage[-1](x)
            if refine is not None:
                feature = refine(level, feature)
            features.append(feature)
            x = F.relu(feature)
        # A fixed kernel, since a global (adaptive) pool exports as ReduceMean, which no DLA runs.
        pooled = average_pooled(x)
        return Outputs(self.fc(pooled), features, pooled, x, self.fc)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns the sum *before* its ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """N, in_channels, H, W -> N, channels, H / stride, W / stride, before the ReLU."""
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        residual: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return residual + shortcut


def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)))


def initialise(module: nn.Module) -> None:
    """He's normal initialisation of convolutions, by the outputs; torch's own elsewhere."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
