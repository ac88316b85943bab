"""int8 graphs against numpy's own rounding, against the style NVIDIA's parser asks for, and against the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from afpkd.errors import UserError
from afpkd.models import build_model
from export.calibration import ranges_of
from export.files import Maker, planned_files
from export.half import SMALLEST_NORMAL, half_from_quantized
from export.quantize import OP_TYPES, Int8, excluded_nodes, layer_name, layers, quantized, sensitivity, with_qdq
from export.to_onnx import graph_from_model
from export.verify import compare, graph_forward
from tests.export.building import initializers

Floats = NDArray[np.float32]


def test_qdq_nodes_are_what_nvidias_parser_takes(graph: onnx.ModelProto, inputs: Floats) -> None:
    proto = quantized(graph, inputs, Int8()).full
    onnx.checker.check_model(proto, full_check=True)
    values = initializers(proto)
    nodes = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) > 30
    for node in nodes:
        zero_point = values[node.input[2]]
        assert zero_point.dtype == np.int8, "no uint8, and no int32: biases stay float"
        assert not zero_point.any(), "symmetric"
    producers = {output: node for node in proto.graph.node for output in node.output}
    for node in layers_of(proto):
        assert producers[node.input[0]].op_type == producers[node.input[1]].op_type == "DequantizeLinear"
        weight = producers[node.input[1]]
        assert values[weight.input[0]].dtype == np.int8
        assert values[weight.input[1]].shape == (values[weight.input[0]].shape[0],), "a scale a channel"
        assert values[node.input[2]].dtype == np.float32
    assert proto.opset_import[0].version == 18
    assert producers["logits"].op_type == "Gemm", "logits are not rounded to 8 bits"


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(
    "shaped",
    [
        lambda maps: maps.flatten(1),
        lambda maps: maps.squeeze(3).squeeze(2),
        lambda maps: maps.view(maps.shape[0], -1),
        lambda maps: maps[:, :, 0, 0],
    ],
)
def test_logits_of_a_convolution_are_not_rounded_either(
    shaped: Callable[[Tensor], Tensor], opset: int, inputs: Floats
) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.classifier = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 10, 1)

        def forward(self, x: Tensor) -> Tensor:
            return shaped(self.classifier(self.conv(x).relu().mean((2, 3), keepdim=True)))

    torch.manual_seed(0)
    proto = graph_from_model(Net(), torch.zeros(1, 3, 16, 16), opset=opset)
    full = quantized(proto, inputs, Int8()).full
    producers = {output: node for node in full.graph.node for output in node.output}
    for node in layers_of(full):
        assert producers[node.input[0]].op_type == producers[node.input[1]].op_type == "DequantizeLinear"
    assert len(np.unique(graph_forward(full)(inputs))) > 1000, "8 bits have 256 values"


def layers_of(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type in OP_TYPES]


def test_int8_weights_are_the_rounded_weights(graph: onnx.ModelProto, inputs: Floats) -> None:
    proto = quantized(graph, inputs, Int8()).full
    was, now = initializers(graph), initializers(proto)
    producers = {output: node for node in proto.graph.node for output in node.output}
    for before, after in zip(layers_of(graph), layers_of(proto), strict=True):
        dequantize = producers[after.input[1]]
        weight = was[before.input[1]]
        shape = (-1,) + (1,) * (weight.ndim - 1)
        scale = (np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127).reshape(shape)
        np.testing.assert_allclose(now[dequantize.input[1]].reshape(shape), scale, rtol=1e-5)
        np.testing.assert_allclose(now[dequantize.input[0]], np.rint(weight / scale), atol=1)


def test_int8_answers_as_the_network_does(graph: onnx.ModelProto, inputs: Floats) -> None:
    reference = graph_forward(graph)(inputs)
    made = quantized(graph, inputs, Int8())
    full = compare(reference, graph_forward(made.full)(inputs))
    assert full["sqnr_db"] > 20
    half = compare(reference, graph_forward(made.half(19), as_written=True)(inputs))
    assert half["sqnr_db"] == pytest.approx(full["sqnr_db"], abs=1.5)


def test_a_scale_too_small_for_float16_is_raised_and_its_weights_rounded_anew(graph: onnx.ModelProto) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(graph)
    conv = layers_of(proto)[1]
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == conv.input[1])
    values = numpy_helper.to_array(weight).copy()
    values[0] *= 1e-3 / np.abs(values[0]).max()  # scale 8e-6: a denormal of float16, two digits
    values[1] *= 1e-7 / np.abs(values[1]).max()  # scale 8e-10: 0 in float16
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    ranges = {name: (-4.0, 4.0) for node in layers_of(proto) for name in (node.input[0], node.output[0])}
    half = half_from_quantized(with_qdq(proto, ranges), 19)
    found = initializers(half)
    (node,) = (node for node in half.graph.node if node.input[0] == f"{weight.name}_quantized")
    scale = found[node.input[1]].astype(np.float64)
    assert scale.min() == pytest.approx(SMALLEST_NORMAL)
    restored = found[node.input[0]] * scale.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(restored[:2], values[:2], atol=0.6 * SMALLEST_NORMAL)  # half a step of each grid
    np.testing.assert_allclose(restored[2:], values[2:], atol=np.abs(values).max() / 127)


def test_layers_have_the_names_of_the_network(graph: onnx.ModelProto) -> None:
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, in_channels=3)
    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)}
    assert {layer_name(node) for node in layers(graph)} == names
    old = graph_from_model(model, torch.zeros(1, 3, 16, 16), opset=17)
    assert {layer_name(node) for node in layers(old)} == names


class Tokens(torch.nn.Module):
    """A convolution whose places are tokens, linear layers on them, one on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Linear(8, 10)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.fc(self.mlp(tokens).mean(1))
        return logits


@pytest.mark.parametrize("opset", [17, 18])
def test_linear_layers_on_tokens_have_the_names_of_the_network_and_can_stay_float(opset: int, inputs: Floats) -> None:
    torch.manual_seed(0)
    graph = graph_from_model(Tokens(), torch.zeros(1, 3, 16, 16), opset=opset)
    assert [layer_name(node) for node in layers(graph)] == ["conv", "mlp.0", "mlp.2", "fc"]
    proto = quantized(graph, inputs, Int8(exclude=("mlp.0",))).full
    producers = {output: node for node in proto.graph.node for output in node.output}
    floats = [layer_name(node) for node in layers_of(proto) if node.input[1] not in producers]
    assert floats == ["mlp.0"]


def test_excluded_layers_stay_float(graph: onnx.ModelProto, inputs: Floats) -> None:
    proto = quantized(graph, inputs, Int8(exclude=("layer1.0.conv1", "fc"))).full
    producers = {output: node for node in proto.graph.node for output in node.output}
    floats = {layer_name(node) for node in layers_of(proto) if node.input[1] not in producers}
    assert floats == {"layer1.0.conv1", "fc"}


def test_an_unknown_layer_names_the_nearest(graph: onnx.ModelProto) -> None:
    with pytest.raises(
        UserError, match=r"int8_exclude: unknown layer 'layer1\.0\.cnov1': did you mean 'layer1\.0\.conv1'"
    ):
        excluded_nodes(graph, ["layer1.0.cnov1"])


def test_layers_of_a_wrapped_network_are_known_by_its_own_names(graph: onnx.ModelProto) -> None:
    """A teacher that has its own normalisation lies under `network.` in its graph."""
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(graph)
    for tensor in wrapped.graph.initializer:
        old, tensor.name = tensor.name, f"model.network.{tensor.name.removeprefix('model.')}"
        for node in wrapped.graph.node:
            node.input[:] = [tensor.name if name == old else name for name in node.input]
    known = excluded_nodes(graph, ["layer1.0.conv1", "fc"])
    assert excluded_nodes(wrapped, ["layer1.0.conv1", "fc"]) == known
    assert excluded_nodes(wrapped, ["network.layer1.0.conv1", "network.fc"]) == known


def test_the_layer_that_hurts_most_comes_first(graph: onnx.ModelProto, inputs: Floats) -> None:
    ranges = ranges_of(graph, inputs, OP_TYPES, "minmax")
    hurt = next(node for node in layers(graph) if layer_name(node) == "layer1.0.conv2")  # alone reads its input
    low, high = ranges[hurt.input[0]]
    rows = sensitivity(graph, {**ranges, hurt.input[0]: (low / 50, high / 50)}, inputs[:16])
    assert rows[0]["layer"] == layer_name(hurt)
    assert rows[0]["sqnr_db"] < rows[1]["sqnr_db"] - 5
    assert [row["sqnr_db"] for row in rows] == sorted(row["sqnr_db"] for row in rows)
    assert len(rows) == len(layers(graph))


def test_graphs_are_exported_and_calibrated_once(graph: onnx.ModelProto, inputs: Floats) -> None:
    asked: list[int] = []

    def graph_of(opset: int) -> onnx.ModelProto:
        asked.append(opset)
        return graph

    maker = Maker(graph_of, 18, inputs, Int8())
    made = [maker.graph(file) for file in planned_files(("fp32", "fp16", "int8"), 18)]
    assert asked == [18]
    assert [proto.opset_import[0].version for proto in made] == [18, 18, 18, 19]
    assert made[0] == graph, "nothing that is made of it changes it"


def test_higher_opsets_need_a_newer_tensorrt() -> None:
    for opset, since in ((18, "10.0"), (20, "10.0"), (21, "10.15"), (23, "10.15")):
        (file,) = planned_files(("fp32",), opset)
        assert [run.min_version for run in file.runs if run.runtime == "tensorrt"] == [since]
        onnxruntime_since = next(run.min_version for run in file.runs if run.runtime == "onnxruntime")
        assert onnxruntime_since is not None
        assert [int(part) for part in onnxruntime_since.split(".")] <= [
            int(part) for part in onnxruntime.__version__.split(".")[:2]
        ]


def test_old_opsets_and_modelopt_do_not_go_together() -> None:
    with pytest.raises(UserError, match=r"legacy with export\.quantizer = 'modelopt'"):
        planned_files(("int8",), 18, legacy=True, quantizer="modelopt")
    assert len(planned_files(("fp32",), 18, legacy=True, quantizer="modelopt")) == 2


def test_a_quantiser_that_is_not_installed_says_what_to_install(
    graph: onnx.ModelProto, inputs: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modelopt.py").write_text("raise ImportError('no modelopt here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # installed or not
    with pytest.raises(UserError, match=r"'modelopt': ImportError: no modelopt here: pip install nvidia-modelopt"):
        quantized(graph, inputs, Int8(quantizer="modelopt", method="minmax"))
    with pytest.raises(UserError, match="Model-Optimizer has minmax and entropy, not mse"):
        quantized(graph, inputs, Int8(quantizer="modelopt"))


MODELOPT = """
import json, pathlib, sys
def quantize(**asked):
    shape = asked.pop("calibration_data")["input"].shape
    pathlib.Path(asked["output_path"]).write_bytes(pathlib.Path(asked["onnx_path"]).read_bytes())
    pathlib.Path({asked!r}).write_text(json.dumps({{**asked, "shape": shape}}, default=str))
"""


def test_model_optimizer_is_asked_as_its_interface_wants_it(
    graph: onnx.ModelProto, inputs: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with its signature: whether it quantises well is bench/quantizers.py's question."""
    folder, said = tmp_path / "modelopt" / "onnx" / "quantization", tmp_path / "asked.json"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").write_text(MODELOPT.format(asked=str(said)) if package == folder else "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = quantized(graph, inputs, Int8(quantizer="modelopt", method="entropy", exclude=("fc",)))
    assert made.full == graph
    asked = json.loads(said.read_text())
    assert (asked["quantize_mode"], asked["calibration_method"], asked["calibration_eps"]) == (
        "int8",
        "entropy",
        ["cpu"],
    )
    assert (asked["high_precision_dtype"], asked["nodes_to_exclude"]) == ("fp32", ["node_linear"])
    assert asked["shape"] == list(inputs.shape)
    made.half(19)
    assert json.loads(said.read_text())["high_precision_dtype"] == "fp16"
    assert made.sensitivity() == []
