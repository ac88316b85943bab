"""Networks as the tests build them: of the zoo, and wrapped ones that are not ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from afpkd.models import build_model
from afpkd.models.wrapped import Wrapped

MOBILE = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2's table: expansion, channels before they are halved, blocks, stride of the first."""

SIZE = (64, 64)
"""Of the images that wrapped networks see."""


def built(arch: str, *, num_classes: int = 100, in_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return build_model(arch, num_classes=num_classes, in_channels=in_channels).eval()


def wrapped(arch: str, size: tuple[int, int] = SIZE, **options: Any) -> Wrapped:
    torch.manual_seed(0)
    model = build_model(arch, num_classes=5, in_channels=3, image_size=size, **options)
    assert isinstance(model, Wrapped)
    return model.eval()
