"""Somebody else's ONNX file in the form of ours: the numbers of ONNX's own reference before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from afpkd.errors import UserError
from export.foreign_graph import at_opset, graph_from_file
from export.graph_cost import graph_cost
from export.quantize import excluded_nodes

WEIGHT = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)


def saved(path: Path, *, names: tuple[str, str, str], opset: int = 17, batch: int | str = 1) -> Path:
    """x -> Reshape -> MatMul -> logits of 5 classes, for images of 3 x 4 x 4; `names` of input, inner and output."""
    source, inner, product = names
    nodes = [
        helper.make_node("Reshape", [source, "shape"], [inner]),
        helper.make_node("MatMul", [inner, "weight"], [product]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info(product, TensorProto.FLOAT, [batch, 5])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 48]),
            helper.make_tensor("weight", TensorProto.FLOAT, WEIGHT.shape, WEIGHT.tobytes(), raw=True),
        ],
        value_info=[helper.make_tensor_value_info(inner, TensorProto.FLOAT, [batch, 48])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def read(path: Path) -> onnx.ModelProto:
    return graph_from_file(path, channels=3, image_size=(4, 4), num_classes=5)


def logits(proto: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {"input": images})[0]
    return found


@pytest.mark.parametrize("names", [("x", "flat", "y"), ("logits", "input", "y"), ("input", "logits", "output")])
def test_any_names_become_ours_and_a_fixed_batch_becomes_free(tmp_path: Path, names: tuple[str, str, str]) -> None:
    path = saved(tmp_path / "theirs.onnx", names=names)
    images = np.random.default_rng(1).normal(size=(3, 3, 4, 4)).astype(np.float32)
    theirs = ReferenceEvaluator(str(path))
    wanted = np.concatenate([next(iter(theirs.run(None, {names[0]: image[None]}))) for image in images])
    proto = read(path)
    assert not proto.graph.value_info, "shapes of a batch of one are no longer true"
    np.testing.assert_allclose(logits(proto, images), wanted, rtol=1e-5)
    assert len({name for node in proto.graph.node for name in node.output}) == 2, "no two tensors share a name"


def test_the_operator_set_is_converted_or_left_alone(tmp_path: Path) -> None:
    proto = read(saved(tmp_path / "theirs.onnx", names=("x", "flat", "y")))
    assert at_opset(proto, 17, tmp_path) is proto
    converted = at_opset(proto, 18, tmp_path)
    assert converted.opset_import[0].version == 18
    images = np.ones((2, 3, 4, 4), np.float32)
    np.testing.assert_array_equal(logits(converted, images), logits(proto, images))


def _with_a_branch(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """A node inside of a branch of the graph."""
    inner = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
    proto.graph.node.append(helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner))


@pytest.mark.parametrize("inside", [False, True])
def test_operators_of_others_are_refused_and_domains_that_are_only_named_are_not(inside: bool, tmp_path: Path) -> None:
    """ONNX Runtime names eight domains in whatever it saves."""
    proto = read(saved(tmp_path / "theirs.onnx", names=("x", "flat", "y")))
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    for opset in (17, 18):
        named = onnx.ModelProto.FromString(proto.SerializeToString())
        assert {entry.domain for entry in at_opset(named, opset, tmp_path).opset_import} == {""}
    node = helper.make_node("Fancy", ["input"], ["z"], domain="com.example")
    _with_a_branch(proto, node) if inside else proto.graph.node.append(node)
    with pytest.raises(UserError, match=r"uses operators of com\.example"):
        at_opset(proto, 17, tmp_path)


def test_what_ort_saves_is_taken(tmp_path: Path) -> None:
    path, options = saved(tmp_path / "theirs.onnx", names=("x", "flat", "y")), onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert len(onnx.load(tmp_path / "optimised.onnx").opset_import) > 1
    images = np.ones((2, 3, 4, 4), np.float32)
    ours, theirs = (at_opset(read(file), 18, file) for file in (path, tmp_path / "optimised.onnx"))
    np.testing.assert_allclose(logits(theirs, images), logits(ours, images), rtol=1e-5)


def test_sizes_that_the_file_leaves_open_are_those_of_the_spec(tmp_path: Path) -> None:
    """TensorRT builds engines of one image size."""
    path = saved(tmp_path / "theirs.onnx", names=("x", "flat", "y"), batch="n")
    proto = onnx.load(path)
    for value, names in ((proto.graph.input[0], "chw"), (proto.graph.output[0], "k")):
        for dim, name in zip(value.type.tensor_type.shape.dim[1:], names, strict=True):
            dim.dim_param = name
    onnx.save(proto, path)
    found = at_opset(read(path), 18, path)
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*found.graph.input, *found.graph.output)
    ]
    assert shapes == [["batch", 3, 4, 4], ["batch", 5]]
    logits(found, np.ones((2, 3, 4, 4), np.float32))


@pytest.mark.parametrize(("theirs", "ours"), [(8, 8), (10, 10), (onnx.IR_VERSION, 10)])
def test_the_oldest_onnx_runtime_that_is_named_can_read_it(theirs: int, ours: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "theirs.onnx", names=("x", "flat", "y"))
    proto = onnx.load(path)
    proto.ir_version = theirs
    onnx.save(proto, path)
    assert [at_opset(read(path), opset, path).ir_version for opset in (17, 18)] == [ours, ours]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (("", "", ""), ["MatMul_1", "Relu_2", "MatMul_3"]),
        (("mlp", "act", "mlp"), ["MatMul_1", "act", "MatMul_3"]),
        (("MatMul_3", "act", ""), ["MatMul_3", "act", "MatMul_3_"]),
        (("mlp", "act", "head"), ["mlp", "act", "head"]),
    ],
)
def test_each_node_has_a_name_of_its_own_at_any_opset(
    given: tuple[str, str, str], names: list[str], tmp_path: Path
) -> None:
    path = saved(tmp_path / "theirs.onnx", names=("x", "flat", "y"))
    proto = onnx.load(path)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(WEIGHT @ WEIGHT.T, "weight"))
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "last"))
    proto.graph.node[1].output[0] = "wide"
    proto.graph.node.extend(
        [helper.make_node("Relu", ["wide"], ["act"]), helper.make_node("MatMul", ["act", "last"], ["y"])]
    )
    proto.graph.node[0].name = "flatten"
    for node, name in zip(proto.graph.node[1:], given, strict=True):
        node.name = name
    onnx.save(proto, path)
    for opset in (17, 18):
        found = at_opset(read(path), opset, path)
        assert [node.name for node in found.graph.node[1:]] == names
        assert [excluded_nodes(found, [layer]) for layer in (names[0], names[2])] == [[names[0]], [names[2]]]


def test_parameters_are_what_was_learned(tmp_path: Path) -> None:
    found = graph_cost(read(saved(tmp_path / "theirs.onnx", names=("x", "flat", "y"))), (3, 4, 4))
    assert (found["num_params"], found["macs"]) == (WEIGHT.size, WEIGHT.size), "the shape of a Reshape is none"


def test_a_file_that_is_no_onnx_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x99not protobuf")
    for name, said in (("x.onnx", "not a valid ONNX file"), ("y.onnx", "No such file")):
        with pytest.raises(UserError, match=said) as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value)
