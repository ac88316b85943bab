"""VGG with BatchNorm for 32x32 images: VGG8 and VGG13 of the distillation literature.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (ICLR 2015), configuration
B (VGG13), and the benchmark's own "S" (VGG8: one convolution a stage). As the CRD benchmark (Tian et al., ICLR 2020)
has it, and unlike the paper: three max-pools instead of five (the fourth and fifth stage both see 4x4 maps of a 32x32
image, and mean pooling ends the network), one linear layer instead of three, no dropout. Convolutions keep their bias.
Parameter names are the benchmark's, so that its public teachers load unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.models.outputs import Outputs, Refine, average_pooled

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five stages."""


class VGG(nn.Module):
    """Five stages with `num_convs` convolutions each.

    Input N, in_channels, H, W with H, W >= 8. The features are those of the last four stages, before their last ReLU
    (the benchmark leaves the first out): half, quarter, eighth and eighth resolution. (For 64x64 images the benchmark
    pools once more; this network does not ask for the size.)
    """

    def __init__(self, num_convs: tuple[int, ...], *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.block0 = _stage(in_channels, WIDTHS[0], num_convs[0])
        self.block1 = _stage(WIDTHS[0], WIDTHS[1], num_convs[1])
        self.block2 = _stage(WIDTHS[1], WIDTHS[2], num_convs[2])
        self.block3 = _stage(WIDTHS[2], WIDTHS[3], num_convs[3])
        self.block4 = _stage(WIDTHS[3], WIDTHS[4], num_convs[4])
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's pre-activation feature on its way (see `Refine`)."""
        x = F.relu(self.block0(x))
        features = []
        for level, stage in enumerate((self.block1, self.block2, self.block3, self.block4)):
            feature = stage(F.max_pool2d(x, 2) if level < 3 else x)
            if refine is not None:
                feature = refine(level, feature)
            features.append(feature)
            x = F.relu(feature)
        pooled = average_pooled(x)
        return Outputs(self.classifier(pooled), features, pooled, x, self.classifier)


def _stage(in_channels: int, channels: int, num_convs: int) -> nn.Sequential:
    """3x3 convolutions with norm, a ReLU between two: the result is before its ReLU."""
    layers: list[nn.Module] = []
    for before in [in_channels] + [channels] * (num_convs - 1):
        if layers:
            layers.append(nn.ReLU())
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
