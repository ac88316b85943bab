"""A small network with the zoo's contract, and a small test set: nothing here waits for ResNets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CHANNELS, SIDE, CLASSES = 3, 8, 5


class TinyOutputs(NamedTuple):
    logits: Tensor
    features: list[Tensor]


class TinyNet(nn.Module):
    """3x3 convolution (3 -> 4), BatchNorm, ReLU, 2x2 average pool, linear (64 -> 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> TinyOutputs:
        feature = self.norm(self.conv(x))
        pooled = nn.functional.avg_pool2d(torch.relu(feature), 2).flatten(1)
        return TinyOutputs(self.fc(pooled), [feature])


@pytest.fixture
def net() -> TinyNet:
    """In train mode, with statistics BatchNorm has really seen."""
    torch.manual_seed(0)
    net = TinyNet()
    net(torch.randn(64, CHANNELS, SIDE, SIDE) * 2 + 1)
    return net


@pytest.fixture
def example() -> Tensor:
    return torch.zeros(1, CHANNELS, SIDE, SIDE)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (300, CHANNELS, SIDE, SIDE), dtype=np.uint8)
