"""The model zoo: a plain dict of builders. torch is imported only when a network is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from afpkd.names import look_up

if TYPE_CHECKING:
    from torch import nn

    from afpkd.models.outputs import Shapes

    Builder = Callable[[int, int], nn.Module]  # (num_classes, in_channels) -> network


def _resnet(depth: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)) -> Builder:
    def build(num_classes: int, in_channels: int) -> nn.Module:
        from afpkd.models.resnet_cifar import ResNet

        return ResNet(depth, widths, num_classes=num_classes, in_channels=in_channels)

    return build


MODELS: dict[str, Builder] = {
    "resnet8": _resnet(8),
    "resnet20": _resnet(20),
    "resnet32": _resnet(32),
    "resnet56": _resnet(56),
    "resnet110": _resnet(110),
    "resnet8x4": _resnet(8, (32, 64, 128, 256)),
    "resnet32x4": _resnet(32, (32, 64, 128, 256)),
}


def build_model(arch: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build a randomly initialised network; it returns `Outputs` and takes `refine`. Raises UserError."""
    return look_up("model", arch, MODELS)(num_classes, in_channels)


def probe_shapes(model: nn.Module, *, in_channels: int, image_size: tuple[int, int]) -> Shapes:
    """Run one black image through `model` in eval mode and read the shapes of what comes out."""
    import torch

    from afpkd.models.outputs import Shapes

    mode, parameter = model.training, next(model.parameters())
    with torch.no_grad():
        outputs = model.eval()(torch.zeros(1, in_channels, *image_size, device=parameter.device))
    model.train(mode)
    return Shapes(
        channels=[feature.shape[1] for feature in outputs.features],
        sizes=[(feature.shape[2], feature.shape[3]) for feature in outputs.features],
        pooled=outputs.pooled.shape[1],
        num_classes=outputs.logits.shape[1],
    )


def num_parameters(model: nn.Module) -> int:
    """Count the parameters, BatchNorm's running statistics left out."""
    return sum(parameter.numel() for parameter in model.parameters())
