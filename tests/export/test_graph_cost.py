"""MACs of an ONNX graph against arithmetic (test_zoo.py: against torch's own count)."""

from collections.abc import Sequence

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from afpkd.errors import UserError
from export.graph_cost import _product, graph_cost


def _graph(*nodes: onnx.NodeProto, weights: dict[str, list[int]], output: Sequence[int | str]) -> onnx.ModelProto:
    initializers = [
        helper.make_tensor(name, TensorProto.FLOAT, dims, [0.0] * torch.Size(dims).numel())
        for name, dims in weights.items()
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        for name, shape in (("x", ("batch", 2, 3, 4)), ("y", output))
    )
    graph = helper.make_graph(list(nodes), "g", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_transposed_convolutions_and_transposed_products_by_hand() -> None:
    upsampling = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    proto = _graph(upsampling, weights={"w": [2, 5, 2, 2]}, output=["batch", 5, 6, 8])
    found = graph_cost(proto, (2, 3, 4))
    assert found["macs"] == 2 * 3 * 4 * 5 * 2 * 2
    assert found["num_params"] == 2 * 5 * 2 * 2
    weights = {"a": [24, 7], "b": [9, 24]}
    gemm = helper.make_node("Gemm", ["a", "b"], ["y"], transA=1, transB=1)
    assert _product(gemm, {**weights, "y": [7, 9]}) == 7 * 9 * 24
    assert _product(helper.make_node("MatMul", ["x", "c"], ["y"]), {"x": [4, 5, 6], "y": [4, 5, 8]}) == 4 * 5 * 8 * 6


def test_integer_products_and_integer_weights_by_hand() -> None:
    """A convolution and a product on integers, with scales and zero points, which are no parameters."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "zw", "s", "z", "b"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["f"]),
        helper.make_node("DequantizeLinear", ["v", "s", "zw"], ["g"]),
        helper.make_node("Conv", ["f", "g"], ["y"]),
    ]
    kinds = {"s": TensorProto.FLOAT, "z": TensorProto.UINT8, "zw": TensorProto.INT8, "b": TensorProto.INT32}
    dims: dict[str, list[int]] = {"s": [], "z": [], "zw": [], "w": [5, 2, 1, 1], "b": [5], "v": [7, 5, 1, 1]}
    initializers = [
        helper.make_tensor(name, kinds.get(name, TensorProto.INT8), shape, [1] * torch.Size(shape).numel())
        for name, shape in dims.items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 7, 3, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    found = graph_cost(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), (2, 3, 4))
    assert found["macs"] == 12 * 5 * 2 + 12 * 7 * 5
    assert found["num_params"] == 5 * 2 + 5 + 7 * 5
    assert found["unsupported_ops"] == {"QuantizeLinear": 1, "DequantizeLinear": 2}


def test_weights_that_an_exporter_wrote_as_operators_are_parameters() -> None:
    weight = helper.make_tensor("t", TensorProto.FLOAT, [5, 2, 1, 1], [0.0] * 10)
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    one = helper.make_node("Constant", [], ["o"], value=helper.make_tensor("t", TensorProto.FLOAT, [], [1.0]))
    nodes = (constant, one, helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Add", ["c", "o"], ["y"]))
    found = graph_cost(_graph(*nodes, weights={}, output=["batch", 5, 3, 4]), (2, 3, 4))
    assert (found["num_params"], found["macs"]) == (10, 12 * 5 * 2)


def test_a_shape_that_depends_on_values_is_refused() -> None:
    found = helper.make_node("NonZero", ["x"], ["n"])
    cast = helper.make_node("Cast", ["n"], ["c"], to=TensorProto.FLOAT)
    product = helper.make_node("MatMul", ["w", "c"], ["y"])
    proto = _graph(found, cast, product, weights={"w": [3, 4]}, output=["batch", "n"])
    with pytest.raises(UserError, match="cannot be inferred"):
        graph_cost(proto, (2, 3, 4))


def test_nodes_of_one_name_are_all_counted_and_a_batchnorms_statistics_are_no_parameters() -> None:
    convolutions = [
        helper.make_node("Conv", [given, weight], [made], name="conv") for given, weight, made in ("xva", "awb")
    ]
    norm = helper.make_node("BatchNormalization", ["b", "scale", "shift", "mean", "variance"], ["y"])
    weights = {"v": [5, 2, 1, 1], "w": [7, 5, 1, 1], **{name: [7] for name in norm.input[1:]}}
    found = graph_cost(_graph(*convolutions, norm, weights=weights, output=["batch", 7, 3, 4]), (2, 3, 4))
    assert found["by_layer"] == {"conv": 12 * 5 * 2 + 12 * 7 * 5}
    assert found["macs"] == 12 * 5 * 2 + 12 * 7 * 5
    assert found["num_params"] == 5 * 2 + 7 * 5 + 7 + 7
