"""MACs of an ONNX graph against torch's own count, and against arithmetic."""

from collections.abc import Sequence

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from afpkd.models import build_model
from afpkd.record import UserError
from export.cost import macs_of
from export.graph_cost import _product, graph_cost
from export.to_onnx import onnx_from_model


@pytest.mark.parametrize("arch", ["resnet8", "mobilenetv2", "shufflenetv1", "wrn-16-2"])
def test_the_graph_costs_what_the_network_costs(arch: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model, example = build_model(arch, num_classes=10, in_channels=3).eval(), torch.zeros(1, 3, 32, 32)
    path = tmp_path_factory.mktemp("cost") / "x.onnx"
    onnx_from_model(model, example, path)
    found, wanted = graph_cost(onnx.load(path), (3, 32, 32)), macs_of(model, example)
    assert found["macs"] == wanted["macs"] == sum(found["by_layer"].values())
    assert set(found) == set(wanted)
    assert "Relu" in found["unsupported_ops"] or "Clip" in found["unsupported_ops"]


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


def test_a_shape_that_depends_on_values_is_refused() -> None:
    found = helper.make_node("NonZero", ["x"], ["n"])
    cast = helper.make_node("Cast", ["n"], ["c"], to=TensorProto.FLOAT)
    product = helper.make_node("MatMul", ["w", "c"], ["y"])
    proto = _graph(found, cast, product, weights={"w": [3, 4]}, output=["batch", "n"])
    with pytest.raises(UserError, match="cannot be inferred"):
        graph_cost(proto, (2, 3, 4))
