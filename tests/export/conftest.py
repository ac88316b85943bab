"""A small network with the zoo's contract, and a small test set: nothing here waits for ResNets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afpkd.models import build_model
from export.bundle import Evaluation, Golden, ModelFile, write_bundle
from export.to_onnx import graph_from_model

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


@pytest.fixture
def written() -> Callable[..., dict[str, Any]]:
    """`written(out, images, model=b"...")` writes a small bundle by hand and gives its manifest."""
    return _written


SHA = "0" * 64
TOLERANCES = {"max_abs": 0.1, "cosine": 0.99, "argmax_agreement": 100.0}
VERIFICATION = {
    **{"max_abs_error": 1e-6, "max_rel_error": 1e-7, "sqnr_db": 120.0, "cosine": 1.0, "argmax_agreement": 100.0},
    **{"num_not_finite": 0, "num": 300, "ties": [], "top1": 80.0, "drop": 0.0, "max_drop": 1.0},
    **{"status": "ok", "reason": None},
}
FACTS: dict[str, Any] = {
    "role": "student",
    "arch": "tiny",
    "num_params": 441,
    "macs": {"macs": 7232},
    "torch_top1": 80.0,
    "verification": {"fp32.onnx": VERIFICATION},
    "build_check": {"fp32.onnx": {"status": None, "reason": "not checked"}},
    "sensitivity": [],
    "lineage": {"weights": SHA, "record": SHA, "calibration": None},
    "preprocessing": {"layout": "NCHW", "scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
}


def _written(out: Path, images: NDArray[np.uint8], model: bytes = b"a model") -> dict[str, Any]:
    source = out.parent / "made" / "fp32.onnx"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(model)
    return write_bundle(
        out,
        facts=FACTS,
        files=[
            ModelFile(source, "fp32", 18, facts={"status": "ok", "reason": None, "tolerances": TOLERANCES}),
        ],
        golden=Golden(images[:2], np.ones((2, 5), np.float32), {"fp32": TOLERANCES}),
        evaluation=Evaluation(images, np.arange(len(images)) % 5, list("abcdé")),
    )


@pytest.fixture(scope="session")
def graph() -> onnx.ModelProto:
    """A ResNet-8 with BatchNorm statistics it has seen: residual sums, strides, a pool, a linear layer."""
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, in_channels=3)
    for _ in range(30):
        model(torch.randn(32, 3, 16, 16))
    return graph_from_model(model, torch.zeros(1, 3, 16, 16))


@pytest.fixture(scope="session")
def inputs() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(128, 3, 16, 16)).astype(np.float32)
