"""float16 graphs of operators that keep a float32 input, against the float32 graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.files import Maker, planned_files
from export.half import LEGACY_OPSET, half_from_float
from export.quantize import Int8
from export.to_onnx import graph_from_model, save_graph
from export.verify import compare, graph_forward, onnx_forward


class Enlarges(nn.Module):
    """3x3 convolution (3 -> 4), twice the size, mean over all places, linear (4 -> 5)."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.up = nn.Upsample(scale_factor=2, mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.up(self.conv(x)).relu().mean((2, 3)))
        return logits


def test_what_tensorrt_8_reads_as_float32_stays_so_in_its_float16_file() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    maker = Maker(lambda opset: graph_from_model(net, torch.zeros(1, 3, 8, 8), opset=opset), 18, None, Int8())
    (legacy,) = [file for file in planned_files(("fp16",), 18, legacy=True) if file.opset == LEGACY_OPSET]
    graph = maker.graph(legacy).graph
    (norm,) = [node for node in graph.node if node.op_type == "InstanceNormalization"]
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert [kinds[name] for name in norm.input[1:]] == [TensorProto.FLOAT] * 2
    assert TensorProto.FLOAT16 in kinds.values()
    images = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    found = compare(graph_forward(maker.graph(legacy))(images), graph_forward(maker._graph(LEGACY_OPSET))(images))
    assert found["sqnr_db"] > 50


@pytest.mark.parametrize("form", ["value", "value_floats", "weight"])
def test_weights_that_it_shares_with_others_stay_float32_too(form: str) -> None:
    """A cast between a weight and the plugin makes it no weight: the parser refuses that."""
    ones, shift = np.ones(4, np.float32), numpy_helper.from_array(np.zeros(4, np.float32), "shift")
    value = {"value": numpy_helper.from_array(ones, "v")} if form == "value" else {"value_floats": ones.tolist()}
    nodes = [] if form == "weight" else [helper.make_node("Constant", [], ["ones"], **value)]
    nodes.append(helper.make_node("InstanceNormalization", ["input", "ones", "shift"], ["normal"]))
    nodes += [helper.make_node("GlobalMaxPool", ["normal"], ["most"]), helper.make_node("Flatten", ["most"], ["flat"])]
    nodes.append(helper.make_node("Mul", ["flat", "ones"], ["logits"]))
    weights = [shift, *([numpy_helper.from_array(ones, "ones")] if form == "weight" else [])]
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4, 8, 8])
    graph = helper.make_graph(
        nodes, "g", [source], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])], weights
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", LEGACY_OPSET)], ir_version=8)
    half = half_from_float(proto)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    (norm,) = [node for node in half.graph.node if node.op_type == "InstanceNormalization"]
    assert [kinds[name] for name in norm.input[1:]] == [TensorProto.FLOAT] * 2
    images = np.random.default_rng(0).normal(size=(3, 4, 8, 8)).astype(np.float32)
    assert compare(graph_forward(half)(images), graph_forward(proto)(images))["sqnr_db"] > 50


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_maps_enlarged_by_a_factor_are_valid_in_float16(mode: str, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    proto = graph_from_model(Enlarges(mode), torch.zeros(1, 3, 8, 8), opset=opset)
    half = half_from_float(proto)
    save_graph(half, tmp_path / "fp16.onnx", opset=opset)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert kinds["model.fc.weight"] == TensorProto.FLOAT16
    images = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    found = compare(graph_forward(proto)(images), onnx_forward(tmp_path / "fp16.onnx")(images))
    assert found["sqnr_db"] > 50
