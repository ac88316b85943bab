"""Each static check against a file that has just that fault, and, where it can, against NVIDIA's real parser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from afpkd.errors import UserError
from deploy.onnx_checks import check_onnx, not_native_on_dla, precision_of

Arrays = dict[str, NDArray[Any]]


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    constants: Arrays | None = None,
    *,
    opset: int = 18,
    shape: Sequence[int | str] = ("batch", 3, 8, 8),
    kind: int = TensorProto.FLOAT,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("input", kind, list(shape))],
        [helper.make_tensor_value_info("logits", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def node(operator: str, *inputs: str, output: str = "logits", **attributes: Any) -> NodeProto:
    return helper.make_node(operator, list(inputs), [output], name=f"the_{operator}", **attributes)


def codes(path: Path, tensorrt: str = "11.4") -> list[str]:
    return [finding.code for finding in check_onnx(path, tensorrt)]


@pytest.mark.parametrize(
    ("tensorrt", "highest"),
    [
        ("8.4.1", 17),
        ("8.5.2.2", 17),
        ("8.6.1", 17),
        ("9.2", 19),
        ("10.0", 20),
        ("10.14.1", 20),
        ("10.16.2", 24),
        ("11.4", 25),
        ("rtx", 25),
    ],
)
def test_each_releases_parser_has_its_highest_opset(tensorrt: str, highest: int, tmp_path: Path) -> None:
    for opset, expected in ((highest, []), (highest + 1, ["opset"])):
        assert codes(save(tmp_path / "x.onnx", [node("Relu", "input")], opset=opset), tensorrt) == expected
    (finding,) = check_onnx(tmp_path / "x.onnx", tensorrt)
    assert f"opset {highest + 1}" in finding.message
    assert ("legacy" in finding.message) == (highest == 17)


@pytest.mark.parametrize("tensorrt", ["8.2.1", "7.0", "new"])
def test_releases_it_knows_nothing_of_are_refused(tensorrt: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TensorRT"):
        check_onnx(save(tmp_path / "x.onnx", [node("Relu", "input")]), tensorrt)


@pytest.mark.parametrize("data", [b"", b"junk", None])
def test_what_is_no_onnx_file_is_refused(data: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.onnx"):
        check_onnx(path, "11.4")


def test_only_the_batch_may_be_dynamic(tmp_path: Path) -> None:
    relu = [node("Relu", "input")]
    assert codes(save(tmp_path / "x.onnx", relu, shape=["batch", 3, 8, 8])) == []
    assert codes(save(tmp_path / "x.onnx", relu, shape=["batch", 3, "height", 8])) == ["dynamic"]
    assert "'height'" in check_onnx(tmp_path / "x.onnx", "11.4")[0].message


def test_int64_inputs_and_foreign_operator_sets_are_found(tmp_path: Path) -> None:
    assert codes(save(tmp_path / "x.onnx", [node("Abs", "input")], kind=TensorProto.INT64)) == ["int64"]
    foreign = helper.make_node("EfficientNMS", ["input"], ["logits"], name="nms", domain="trt.plugins")
    path = save(tmp_path / "x.onnx", [foreign])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("trt.plugins", 1))
    onnx.save(model, path)
    assert codes(path) == ["opset"]
    assert "node nms" in check_onnx(path, "11.4")[0].message


def test_weights_in_another_file_are_found(tmp_path: Path) -> None:
    weights = {"w": np.ones((3, 8, 8), np.float32)}
    path = save(tmp_path / "x.onnx", [node("Add", "input", "w")], weights)
    assert codes(path) == []
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="x.data", size_threshold=0)
    assert codes(path) == ["external"]


def quantised(path: Path, zero: Any) -> Path:
    """Quantise and dequantise the input; `zero`: the zero point, None for none."""
    names = ["scale", "zero"] if zero is not None else ["scale"]
    constants = {"scale": np.float32(0.1), **({"zero": np.asarray(zero)} if zero is not None else {})}
    nodes = [node("QuantizeLinear", "input", *names, output="q"), node("DequantizeLinear", "q", *names)]
    return save(path, nodes, {name: np.asarray(value) for name, value in constants.items()})


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (np.int8(0), []),
        (np.int8(3), ["asymmetric", "asymmetric"]),
        (np.uint8(0), ["uint8", "uint8"]),
        (np.uint8(128), ["uint8", "uint8"]),
        (None, ["uint8"]),
    ],
)
def test_activations_are_symmetric_int8(zero: Any, expected: list[str], tmp_path: Path) -> None:
    assert codes(quantised(tmp_path / "x.onnx", zero)) == expected


def test_a_dequantised_int32_bias_is_found(tmp_path: Path) -> None:
    constants: Arrays = {
        "bias": np.zeros(8, np.int32),
        "scale": np.full(8, 0.1, np.float32),
        "zero": np.zeros(8, np.int32),
    }
    nodes = [node("DequantizeLinear", "bias", "scale", "zero", output="b", axis=0), node("Add", "input", "b")]
    (finding,) = check_onnx(save(tmp_path / "x.onnx", nodes, constants), "10.3")
    assert finding.code == "bias"
    assert "the_DequantizeLinear" in finding.message


def test_the_real_parser_agrees_about_quantisation(tmp_path: Path) -> None:
    """int32 biases and zero points other than 0 are refused by NVIDIA's parser too, at the node we name."""
    pytest.importorskip("tensorrt_rtx")
    from deploy.agent.errors import AgentError
    from deploy.agent.tensorrt_api import open_tensorrt
    from deploy.agent.tensorrt_build import BuildOptions, build_engine

    constants: Arrays = {
        "bias": np.ones(8, np.int32),
        "scale": np.full(8, 0.1, np.float32),
        "zero": np.zeros(8, np.int32),
    }
    nodes = [node("DequantizeLinear", "bias", "scale", "zero", output="b", axis=0), node("Add", "input", "b")]
    files = {
        quantised(tmp_path / "asymmetric.onnx", np.int8(3)): "QuantizeLinear",
        quantised(tmp_path / "uint8.onnx", np.uint8(128)): "QuantizeLinear",
        save(tmp_path / "bias.onnx", nodes, constants): "DequantizeLinear",
    }
    api = open_tensorrt("tensorrt_rtx")
    for path, operator in files.items():
        with pytest.raises(AgentError) as caught:
            build_engine(api, str(path), BuildOptions("int8"))
        assert caught.value.code == "E_PARSE"
        assert f"the_{operator}" in caught.value.message
        assert f"the_{operator}" in check_onnx(path, "rtx")[0].message
    build_engine(api, str(quantised(tmp_path / "good.onnx", np.int8(0))), BuildOptions("int8"))


def test_a_dla_runs_a_fixed_average_pool_and_neither_a_global_pool_nor_a_mean(tmp_path: Path) -> None:
    pools = {
        "fixed": node("AveragePool", "input", kernel_shape=[8, 8]),
        "global": node("GlobalAveragePool", "input"),
        "mean": node("ReduceMean", "input"),
    }
    found = {}
    for name, pool in pools.items():
        path = save(tmp_path / f"{name}.onnx", [pool], shape=["batch", 3, 16, 16])
        assert codes(path) == []  # a GPU runs them all
        found[name] = not_native_on_dla(path)
    assert found == {"fixed": {}, "global": {"GlobalAveragePool": 1}, "mean": {"ReduceMean": 1}}


def test_the_precision_of_a_file_is_that_of_its_weights_or_of_its_quantised_tensors(tmp_path: Path) -> None:
    half, full = np.ones((3, 8, 1, 1), np.float16), np.ones((8, 3, 1, 1), np.float32)
    weight = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(half))
    scale, zero = np.float32(0.1), np.zeros((), np.int8)
    quantised = [
        node("QuantizeLinear", "input", "s", "z", output="q"),
        node("DequantizeLinear", "q", "s", "z", output="d"),
        node("Conv", "d", "w"),
    ]
    files = {
        "fp32": save(tmp_path / "a", [node("Conv", "input", "w")], {"w": full}),
        "fp16": save(tmp_path / "b", [node("Conv", "input", "w")], {"w": half}, kind=TensorProto.FLOAT16),
        "int8": save(tmp_path / "c", quantised, {"w": half, "s": np.asarray(scale), "z": zero}),
    }
    assert {name: precision_of(path) for name, path in files.items()} == {name: name for name in files}
    constant = save(tmp_path / "d", [weight, node("Conv", "input", "w")], kind=TensorProto.FLOAT16)
    assert precision_of(constant) == "fp16"
    inside = helper.make_function("own", "Restore", ["q"], ["y"], [quantised[1]], [helper.make_opsetid("", 18)])
    model = onnx.load(files["fp32"])
    model.functions.append(inside)
    onnx.save(model, tmp_path / "e")
    assert precision_of(tmp_path / "e") == "int8"
