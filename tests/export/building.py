"""A bundle of a small network with chosen changes, and files that are not quite the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from export.build import build_bundle
from export.files import Maker, Planned
from export.making import Order

SHA = "0" * 64
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def built(net: nn.Module, images: NDArray[np.uint8], out: Path, **changes: Any) -> dict[str, Any]:
    test: dict[str, Any] = {"images": images, "labels": np.arange(len(images)) % 5, "label_names": list("abcde")}
    test |= {key: changes.pop(key) for key in test.keys() & changes.keys()}
    ordered: dict[str, Any] = {
        "role": "student",
        "arch": "tiny",
        "mean": MEAN,
        "std": STD,
        "precisions": ("fp32",),
        "opset": 18,
        "lineage": {"weights": SHA, "record": SHA},
        "out": out,
    }
    return build_bundle(net, Order(**{**ordered, **changes}), **test)


def spoil(monkeypatch: pytest.MonkeyPatch, precision: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Files of this precision are not quite the network."""
    right = Maker.graph

    def wrong(self: Maker, file: Planned) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(right(self, file))
        if file.precision == precision:
            change(proto)
        return proto

    monkeypatch.setattr(Maker, "graph", wrong)


def add_to(name: str, amount: float) -> Callable[[onnx.ModelProto], None]:
    """Move the first value of the weight whose name ends so."""

    def change(proto: onnx.ModelProto) -> None:
        (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name.endswith(name))
        values = numpy_helper.to_array(weight).copy()
        values.flat[0] += np.array(amount, values.dtype)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    return change


def initializers(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """A graph's weights by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
