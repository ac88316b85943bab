"""Where TensorRT's int8 files have Q/DQ pairs, and what the rest of them computes in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from export.calibration import ranges_of, tied_ranges
from export.quantize import OP_TYPES, Int8, fused, layer_name, layers, quantized, with_qdq
from export.to_onnx import graph_from_model
from export.verify import graph_forward
from tests.export.building import initializers

Floats = NDArray[np.float32]


def test_the_remainder_for_tensorrt_10_is_float16_and_its_q_dq_the_same(graph: onnx.ModelProto, inputs: Floats) -> None:
    made, ranges = quantized(graph, inputs, Int8()), tied_ranges(graph, ranges_of(graph, inputs, OP_TYPES))
    full, half = with_qdq(graph, ranges, in_float=fused(graph)), made.half(19)
    onnx.checker.check_model(half, full_check=True)
    assert half.opset_import[0].version == 19
    count = [
        [node.op_type for node in proto.graph.node if "Quantize" in node.op_type or node.op_type in OP_TYPES]
        for proto in (full, half)
    ]
    assert sorted(count[0]) == sorted(count[1])
    was, now = initializers(full), initializers(half)
    assert was.keys() == now.keys()
    for name, values in was.items():
        if values.dtype == np.int8:
            np.testing.assert_array_equal(values, now[name])
        elif values.dtype == np.float32:
            assert now[name].dtype == np.float16, name
            np.testing.assert_allclose(now[name], values, rtol=1e-3, atol=1e-6)
    casts = [
        (node.op_type, helper.get_attribute_value(node.attribute[0]))
        for node in half.graph.node
        if node.op_type == "Cast"
    ]
    assert casts == [("Cast", TensorProto.FLOAT16), ("Cast", TensorProto.FLOAT)], "at the ends alone"


def test_tensorrt_8s_file_rounds_its_weights_as_it_is_loaded_to_the_same(
    graph: onnx.ModelProto, inputs: Floats
) -> None:
    ranges = tied_ranges(graph, ranges_of(graph, inputs, OP_TYPES))
    stored, paired = with_qdq(graph, ranges, in_float=fused(graph)), quantized(graph, inputs, Int8()).paired()
    kinds = [
        {values.dtype for values in initializers(proto).values() if values.ndim == 4} for proto in (stored, paired)
    ]
    assert kinds == [{np.dtype(np.int8)}, {np.dtype(np.float32)}]
    np.testing.assert_allclose(graph_forward(paired)(inputs), graph_forward(stored)(inputs), atol=1e-6)


class Blocks(torch.nn.Module):
    """A residual block whose shortcut is a layer, one whose shortcut is its input, and a layer without activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shortcut, self.c, self.d = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.linear, self.last = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 8, 1)
        self.fc = torch.nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.b(self.a(x).relu()) + self.shortcut(x)).relu()
        x = (self.d(self.c(x).relu()) + x).relu()
        logits: Tensor = self.fc(self.last(self.linear(x)).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ((), {"a", "b", "c", "d", "last"}),
        (("last",), {"a", "b", "c", "d", "linear"}),
        (("b",), {"a", "shortcut", "c", "d", "last"}),
    ],
)
def test_for_tensorrt_no_pair_stands_between_a_convolution_and_what_is_fused_with_it(
    exclude: tuple[str, ...], expected: set[str], inputs: Floats
) -> None:
    """Of the first sum the shortcut has a pair; `linear` has one because `last` reads it; all enter layers as int8."""
    torch.manual_seed(0)
    proto = graph_from_model(Blocks(), torch.zeros(1, 3, 16, 16), opset=18)
    made = quantized(proto, inputs, Int8(exclude=exclude))
    names = {node.output[0]: layer_name(node) for node in layers(proto) if node.op_type == "Conv"}
    for file in (made.half(19), made.paired()):
        restored = {node.output[0] for node in file.graph.node if node.op_type == "DequantizeLinear"}
        rounded = {node.input[0] for node in file.graph.node if node.op_type == "QuantizeLinear"}
        kept = {name for output, name in names.items() if output not in rounded} - set(exclude)
        assert kept == expected
        for node in (node for node in file.graph.node if node.op_type == "Conv"):
            entered = [name in restored for name in node.input[:2]]
            assert entered == [names[node.output[0]] not in exclude] * 2
    rounded = {node.input[0] for node in made.full.graph.node if node.op_type == "QuantizeLinear"}
    assert {name for output, name in names.items() if output not in rounded} == set(exclude), (
        "ONNX Runtime has them all"
    )
