"""The model zoo: a plain dict of builders. torch is imported only when a network is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from afpkd.errors import UserError
from afpkd.models.user_file import is_user_file
from afpkd.names import look_up

if TYPE_CHECKING:
    from torch import nn

    from afpkd.models.outputs import Shapes

    Builder = Callable[[int, int], nn.Module]  # (num_classes, in_channels) -> network


def _of(module: str, network: str, *form: Any) -> Builder:
    """Of afpkd/models/MODULE.py the class NETWORK, called with its form, the classes and the channels of an image."""

    def build(num_classes: int, in_channels: int) -> nn.Module:
        made = getattr(importlib.import_module(f"{__name__}.{module}"), network)
        model: nn.Module = made(*form, num_classes=num_classes, in_channels=in_channels)
        return model

    return build


def _resnet(depth: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)) -> Builder:
    return _of("resnet_cifar", "ResNet", depth, widths)


def _fcos(backbone: str, width: int, num_convs: int) -> Builder:
    def build(num_classes: int, in_channels: int) -> nn.Module:
        from afpkd.models.fcos import FcosDetector

        assert in_channels == 3, "scenes with boxes are read as RGB"
        return FcosDetector(backbone, width=width, num_convs=num_convs, num_classes=num_classes)

    return build


DETECTORS: dict[str, Builder] = {
    "fcos-resnet101": _fcos("resnet101", 256, 4),
    "fcos-resnet50": _fcos("resnet50", 256, 4),
    "fcos-resnet18": _fcos("resnet18", 256, 4),
    "fcos-mobilenetv3": _fcos("mobilenet_v3_large", 256, 4),
    "fcos-resnet18-128": _fcos("resnet18", 128, 2),
    "fcos-resnet18-64": _fcos("resnet18", 64, 1),
    "fcos-mobilenetv3-64": _fcos("mobilenet_v3_large", 64, 1),
}
"""FCOS-BACKBONE: neck and head as published, 256 channels, four convolutions a branch; FCOS-BACKBONE-WIDTH: narrow."""

MODELS: dict[str, Builder] = {
    "resnet8": _resnet(8),
    "resnet20": _resnet(20),
    "resnet32": _resnet(32),
    "resnet56": _resnet(56),
    "resnet110": _resnet(110),
    "resnet8x4": _resnet(8, (32, 64, 128, 256)),
    "resnet32x4": _resnet(32, (32, 64, 128, 256)),
    "resnet18": _of("resnet18_cifar", "ResNet18"),
    "resnet50": _of("resnet50_cifar", "ResNet50"),
    "wrn-16-2": _of("wide_resnet", "WideResNet", 16, 2),
    "wrn-40-1": _of("wide_resnet", "WideResNet", 40, 1),
    "wrn-40-2": _of("wide_resnet", "WideResNet", 40, 2),
    "vgg8": _of("vgg", "VGG", (1, 1, 1, 1, 1)),
    "vgg13": _of("vgg", "VGG", (2, 2, 2, 2, 2)),
    "mobilenetv2": _of("mobilenet_v2", "MobileNetV2"),
    "shufflenetv1": _of("shufflenet_v1", "ShuffleNetV1"),
    "shufflenetv2": _of("shufflenet_v2", "ShuffleNetV2"),
}


def is_foreign(arch: str) -> bool:
    """Whether `arch` names a network that is not ours: timm:NAME, torchvision:NAME, FILE.py:FUNCTION."""
    return arch.startswith(("timm:", "torchvision:")) or is_user_file(arch)


def build_model(
    arch: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int] | None = None,
    stages: tuple[str, ...] = (),
    published: bool = False,
) -> nn.Module:
    """Build a network; it takes `refine` and returns `Outputs`, or a detector `Detections`. Raises UserError.

    It starts at random, or with `published` from its library's weights. image_size, stages: of a foreign network, at
    which size its stages are found, or which modules end them.
    """
    if is_foreign(arch):
        from afpkd.models.foreign import foreign_model

        assert image_size is not None, "stages are found at a size"
        return foreign_model(
            arch,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            stages=stages,
            published=published,
        )
    build = look_up("E_NETWORK_NAME", "model", arch, MODELS | DETECTORS)
    if stages or published:
        raise UserError(
            "E_NETWORK_FIT", f"{arch}: its stages are its own and it has no published weights: leave both out"
        )
    return build(num_classes, in_channels)


def probe_shapes(model: nn.Module, *, in_channels: int, image_size: tuple[int, int]) -> Shapes:
    """Run one black image through `model` in eval mode and read the shapes of what comes out."""
    import torch

    from afpkd.models.outputs import Outputs, Shapes

    mode, parameter = model.training, next(model.parameters())
    with torch.no_grad():
        outputs = model.eval()(torch.zeros(1, in_channels, *image_size, device=parameter.device))
    model.train(mode)
    return Shapes(
        channels=[feature.shape[1] for feature in outputs.features],
        sizes=[(feature.shape[2], feature.shape[3]) for feature in outputs.features],
        pooled=outputs.pooled.shape[1] if isinstance(outputs, Outputs) else None,
        num_classes=outputs.logits.shape[-1],
    )


def num_parameters(model: nn.Module) -> int:
    """Count the parameters, BatchNorm's running statistics left out."""
    return sum(parameter.numel() for parameter in model.parameters())
