"""A stranger's graph that never ends, or asks for more memory than there is: one line, wherever it is run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from afpkd.errors import UserError
from deploy.measure_file import feeds_for
from export import bounded
from export.verify import graph_forward


def endless() -> onnx.ModelProto:
    """Adds one to the sum of its input 2^62 times."""
    value, node = helper.make_tensor_value_info, helper.make_node
    body = helper.make_graph(
        [node("Identity", ["more"], ["go_on"]), node("Add", ["sum", "one"], ["next"])],
        "body",
        [value("i", TensorProto.INT64, []), value("more", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, [1])],
        [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    nodes = [node("ReduceSum", ["x"], ["all"], keepdims=0), node("Reshape", ["all", "size"], ["start"])]
    weights = [helper.make_tensor("turns", TensorProto.INT64, [], [2**62])]
    weights += [helper.make_tensor("size", TensorProto.INT64, [1], [1])]
    return _model([*nodes, node("Loop", ["turns", "", "start"], ["y"], body=body)], weights)


def boundless() -> onnx.ModelProto:
    """A terabyte of zeros for each image."""
    node = helper.make_node
    nodes = [node("ConstantOfShape", ["size"], ["zeros"]), node("ReduceSum", ["zeros"], ["y"], keepdims=1)]
    return _model(
        [*nodes, node("ReduceSum", ["x"], ["z"])], [helper.make_tensor("size", TensorProto.INT64, [1], [2**40])]
    )


def _model(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", 3])], [value("y", TensorProto.FLOAT, [1])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(("make", "told"), [(endless, r"no answer within 0\.5 s: has it a loop\?"), (boundless, "")])
@pytest.mark.timeout(60, method="thread")  # a signal does not end what runs in C
def test_a_graph_without_end_is_one_line(
    make: object, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(make)
    monkeypatch.setattr(bounded, "MOST_SECONDS", 0.5)
    proto: onnx.ModelProto = make()
    onnx.save(proto, tmp_path / "theirs.onnx")
    with pytest.raises(UserError, match=rf"theirs\.onnx: it does not compute: .*{told}"):
        feeds_for(tmp_path / "theirs.onnx", None, {})
    with pytest.raises(UserError, match=rf"g: it does not compute: .*{told}"):
        graph_forward(proto)(np.ones((1, 3), np.float32))


def test_a_call_that_ends_is_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_SECONDS", 5.0)
    proto = _model([helper.make_node("ReduceSum", ["x"], ["y"])], [])
    forward = graph_forward(proto)
    assert [float(forward(np.full((1, 3), value, np.float32))[0, 0]) for value in (1, 2)] == [3.0, 6.0]
