"""Wide ResNets for 32x32 images: WRN-d-k of the distillation literature.

Zagoruyko and Komodakis, "Wide residual networks" (BMVC 2016): depth d = 6 n + 4, three stages of n pre-activation
blocks with 16 k, 32 k and 64 k channels, no dropout. Parameter names are those of the CRD benchmark (Tian et al., ICLR
2020), so that its public teachers load unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled


class WideResNet(nn.Module):
    """`depth` layers, `widening` times the channels of a CIFAR ResNet.

    Input N, in_channels, H, W with H, W >= 8; features at full, half and quarter resolution. A stage ends in a plain
    sum and its ReLU stands behind the *next* BatchNorm: the feature is what that norm gives, as ReviewKD takes it
    (mdistiller), and everything deeper is computed from it.
    """

    def __init__(self, depth: int, widening: int, *, num_classes: int, in_channels: int) -> None:
        assert depth % 6 == 4, "a wide ResNet has 6 n + 4 layers"
        super().__init__()
        num_blocks = (depth - 4) // 6
        widths = [16 * widening, 32 * widening, 64 * widening]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, widths[0], num_blocks, stride=1)
        self.block2 = Stage(widths[0], widths[1], num_blocks, stride=2)
        self.block3 = Stage(widths[1], widths[2], num_blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's pre-activation feature on its way (see `Refine`)."""
        x = self.conv1(x)
        activated = F.relu(self.block1.norm(x))
        features = []
        following = ((self.block1, self.block2.norm), (self.block2, self.block3.norm), (self.block3, self.bn1))
        for level, (stage, norm) in enumerate(following):
            x = stage(x, activated)
            feature = norm(x)
            if refine is not None:
                feature = refine(level, feature)
            features.append(feature)
            activated = F.relu(feature)
        pooled = average_pooled(activated)
        return Outputs(self.fc(pooled), features, pooled, activated, self.fc)


class Stage(nn.Module):
    """Blocks of one resolution; the first one widens and strides."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, channels, stride)
        self.layer = nn.ModuleList([first, *(PreActivationBlock(channels, channels, 1) for _ in range(num_blocks - 1))])

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The norm before the first block: the network applies it, for the stage before ends with it."""
        first = self.layer[0]
        assert isinstance(first, PreActivationBlock)
        return first.bn1

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """x: N, in_channels, H, W; activated: relu(norm(x)) -> N, channels, H / stride, W / stride, not normalised."""
        x = self.layer[0](x, activated)
        for block in self.layer[1:]:
            x = block(x)
        return x


class PreActivationBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice; a projection shortcut starts behind the first ReLU, an identity before it."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None  # the benchmark's spelling
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor, activated: Tensor | None = None) -> Tensor:
        """N, in_channels, H, W -> N, channels, H / stride, W / stride; `activated` where relu(bn1(x)) is known."""
        if activated is None:
            activated = F.relu(self.bn1(x))
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(activated)
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return residual + shortcut


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
