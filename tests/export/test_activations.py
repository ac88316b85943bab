"""Activation memory: graphs worked by hand, and a network against hooks that watch torch run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from afpkd.models import build_model
from export.activations import activation_memory
from export.half import half_from_float
from export.to_onnx import onnx_from_model

if TYPE_CHECKING:
    from pathlib import Path


def graph(nodes: list[onnx.NodeProto], output: str = "y", weights: tuple[str, ...] = ()) -> onnx.ModelProto:
    """x: float32 of 10 values, weights of as many."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 10]) for name in ("x", output))
    initializers = [helper.make_tensor(name, TensorProto.FLOAT, [1, 10], [0.0] * 10) for name in weights]
    made = helper.make_graph(nodes, "g", [x], [y], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])


def node(kind: str, reads: list[str], writes: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, reads, [writes], name=f"make_{writes}", **attributes)


def test_a_chain_needs_two_values_at_a_time() -> None:
    chain = [node("Relu", ["x"], "a"), node("Relu", ["a"], "b"), node("Relu", ["b"], "y")]
    found = activation_memory(graph(chain), [10])
    assert found == {"peak_bytes": 80, "at": "make_a", "total_bytes": 160, "unknown": []}


def test_a_skip_connection_keeps_its_value_alive() -> None:
    nodes = [node("Relu", ["x"], "a"), node("Relu", ["a"], "b"), node("Relu", ["b"], "c"), node("Add", ["c", "a"], "y")]
    found = activation_memory(graph(nodes), [10])
    assert (found["peak_bytes"], found["at"]) == (120, "make_c")  # a, b and c


def test_sizes_are_those_of_the_values_and_of_their_types() -> None:
    wide = helper.make_tensor("t", TensorProto.FLOAT, [10, 30], [0.0] * 300)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=wide),
        node("MatMul", ["x", "w"], "a"),  # 30 values
        node("Cast", ["a"], "h", to=TensorProto.FLOAT16),
        node("Relu", ["h"], "y"),
    ]
    proto = graph(nodes)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 30]))
    found = activation_memory(proto, [10])
    assert found["peak_bytes"] == 120 + 60  # a and h; x is read no more
    assert found["total_bytes"] == 40 + 120 + 60 + 60


def test_weights_and_what_depends_on_them_alone_are_left_out() -> None:
    nodes = [node("Relu", ["w"], "v"), node("Add", ["x", "v"], "y")]
    assert activation_memory(graph(nodes, weights=("w",)), [10])["total_bytes"] == 80


def test_an_unused_value_lives_while_it_is_made_and_an_output_to_the_end() -> None:
    nodes = [node("Relu", ["x"], "y"), node("Relu", ["x"], "lost"), node("Relu", ["x"], "lost2")]
    found = activation_memory(graph(nodes), [10])
    assert found["peak_bytes"] == 120  # x, y and one of the two


def test_branches_read_the_values_around_them() -> None:
    inner = helper.make_graph(
        [node("Relu", ["x"], "i")], "then", [], [helper.make_tensor_value_info("i", TensorProto.FLOAT, ["batch", 10])]
    )
    nodes = [
        node("ReduceSum", ["x"], "s", keepdims=0),
        node("Cast", ["s"], "b", to=TensorProto.BOOL),
        node("If", ["b"], "y", then_branch=inner, else_branch=inner),
    ]
    found = activation_memory(graph(nodes), [10])
    assert found["peak_bytes"] == 40 + 1 + 40  # x lives until the branch has read it


def test_a_size_that_depends_on_values_is_named() -> None:
    nodes = [node("NonZero", ["x"], "n"), node("Cast", ["n"], "y", to=TensorProto.FLOAT)]
    proto = graph(nodes)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "n"]))
    found = activation_memory(proto, [10])
    assert found == {"peak_bytes": None, "at": None, "total_bytes": None, "unknown": ["n", "y"]}


@pytest.mark.parametrize("arch", ["vgg8", "resnet8"])
def test_the_peak_of_a_network_lies_between_what_torch_shows(arch: str, tmp_path: Path) -> None:
    """At least what the largest layer reads and writes, at most all values; half of it in float16."""
    model, example = build_model(arch, num_classes=10, in_channels=3).eval(), torch.zeros(1, 3, 32, 32)
    reads_and_writes = []

    def watch(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # the layer, or what comes after it and writes as much as it reads
        reads_and_writes.append(4 * (max(inputs[0].numel(), output.numel()) + output.numel()))

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(watch)
    with torch.no_grad():
        model(example)
    widest = max(reads_and_writes)
    onnx_from_model(model, example, tmp_path / "x.onnx")
    proto = onnx.load(tmp_path / "x.onnx")
    found = activation_memory(proto, (3, 32, 32))
    assert widest <= found["peak_bytes"] <= 1.5 * widest
    assert found["peak_bytes"] < found["total_bytes"]
    half = activation_memory(half_from_float(proto), (3, 32, 32))["peak_bytes"]
    assert half == pytest.approx(found["peak_bytes"] / 2, rel=0.1)
