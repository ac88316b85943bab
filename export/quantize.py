"""Post-training int8: Q/DQ nodes that both ONNX Runtime and NVIDIA's parser take.

NVIDIA's parser refuses the quantiser's defaults: int32 bias Q/DQ and asymmetric activations. So: symmetric int8
everywhere, weights a channel, biases left as they are. ONNX Runtime computes a convolution in int8 where a pair follows
it at once, TensorRT fuses what follows a convolution where none does (`fused`): the files differ in this.

ONNX Runtime's quantiser is the default, NVIDIA Model-Optimizer an option. Side by side (bench/results/quantizers.jsonl)
neither wins everywhere: Model-Optimizer by 1 to 5 dB on ResNet-8 and -20, ONNX Runtime by 2 dB on ResNet-56, where int8
costs most; TensorRT-RTX computes no fewer layers of ours in int8. Model-Optimizer writes opset 19, which nothing before
TensorRT 10 reads, and brings gigabytes of packages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from afpkd.data.batches import evenly_spaced
from afpkd.errors import UserError
from afpkd.models.wrapped import PREFIX as WRAPPED
from afpkd.names import unknown
from afpkd.record import Json
from export.calibration import Method, Ranges, ranges_of, tied_ranges
from export.half import half_from_quantized, sorted_graph
from export.passes import outputs_of_preprocessed
from export.verify import compare, graph_forward

OP_TYPES = ("Conv", "Gemm", "MatMul")
"""What is computed in int8: all else is a few percent of the work."""

NUM_JUDGED = 32
"""Calibration images a layer's sensitivity is measured on."""

_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "MatMulConstBOnly": True,
    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],  # logits stay float: 8 bits would make ties of them
}
_NO_ARITHMETIC = ("Reshape", "Flatten", "Squeeze", "Gather", "Identity")

Quantizer = Literal["onnxruntime", "modelopt"]


class Int8(NamedTuple):
    """How a float graph becomes int8."""

    quantizer: Quantizer = "onnxruntime"
    method: Method = "mse"
    exclude: tuple[str, ...] = ()
    """Layers that stay float: names of modules (`layer1.0.conv1`) or of nodes."""


class Quantized(NamedTuple):
    """int8 with a float32 remainder, the same with a float16 remainder, and what was found on the way."""

    full: onnx.ModelProto
    half: Callable[[int], onnx.ModelProto]
    """(opset) -> the file for TensorRT from 10 on; made when asked for."""
    paired: Callable[[], onnx.ModelProto]
    """The file for TensorRT 8, which takes no stored int8: weights are float32 behind a Q/DQ pair; made when asked."""
    sensitivity: Callable[[], list[Json]]
    """What each layer costs, the worst first; measured when asked for."""


def quantized(proto: onnx.ModelProto, inputs: NDArray[np.float32], settings: Int8) -> Quantized:
    """Quantise a float32 graph on `inputs` (float32 N, C, H, W, preprocessed training images).

    UserError: a name in `exclude` that no layer has, or a quantiser that is not installed.
    """
    excluded = excluded_nodes(proto, settings.exclude)
    if settings.quantizer == "modelopt":
        from export.modelopt import modelopt_int8

        full = modelopt_int8(proto, inputs, excluded, settings.method, "fp32")
        return Quantized(
            full,
            half=lambda _: modelopt_int8(proto, inputs, excluded, settings.method, "fp16"),
            paired=lambda: full,  # never asked for: `planned_files` refuses it
            sensitivity=list,
        )
    ranges = tied_ranges(proto, ranges_of(proto, inputs, OP_TYPES, settings.method))
    tensorrt = partial(with_qdq, proto, ranges, exclude=excluded, in_float=fused(proto, excluded))
    return Quantized(
        with_qdq(proto, ranges, exclude=excluded),
        half=lambda opset: half_from_quantized(tensorrt(), opset),
        paired=lambda: tensorrt(store_int8=False),
        sensitivity=lambda: sensitivity(proto, ranges, inputs[evenly_spaced(_num_judged(proto), len(inputs)).numpy()]),
    )


def with_qdq(
    proto: onnx.ModelProto,
    ranges: Ranges,
    *,
    exclude: Collection[str] = (),
    only: Collection[str] = (),
    in_float: Collection[str] = (),
    store_int8: bool = True,
) -> onnx.ModelProto:
    """Place Q/DQ pairs around the layers; exclude, only: names of nodes; in_float: of values that get no pair.

    store_int8: weights as int8, behind a DQ.
    """
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    quantizer = QDQQuantizer(
        copy,
        True,  # weights a channel
        False,  # no reduced range: it would hide the saturation that `session.x64quantprecision` mends
        QuantType.QInt8,
        QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        list(only),
        list(exclude),
        list(OP_TYPES),
        {**_OPTIONS, "AddQDQPairToWeight": not store_int8},
    )
    place, left = quantizer.quantize_activation_tensor, {*in_float, _unshaped_logits(proto.graph)}
    quantizer.quantize_activation_tensor = lambda name: None if name in left else place(name)
    quantizer.quantize_model()
    _unshare_weights(quantizer.model.model.graph)
    placed = sorted_graph(quantizer.model.model)
    placed.producer_name, placed.producer_version = proto.producer_name, proto.producer_version
    return placed


def fused(proto: onnx.ModelProto, exclude: Collection[str] = ()) -> set[str]:
    """Results of convolutions that TensorRT fuses with what follows (ReLU, a residual sum) if they are left as float.

    NVIDIA's "Q/DQ Layer-Placement Recommendations" (TensorRT's developer guide): quantise what enters a layer, not what
    leaves it, and of a residual sum the shortcut. So the rest keeps its pair: what the next layer reads as it is, and
    the second of a sum of two such results. exclude: names of nodes that stay float.
    """
    quantised = [node for node in layers(proto) if node.name not in exclude]
    results = {node.output[0] for node in quantised if node.op_type == "Conv"} - {node.input[0] for node in quantised}
    sums = [node for node in proto.graph.node if node.op_type == "Add" and results.issuperset(node.input)]
    return results - {node.input[1] for node in sums}


def _unshaped_logits(graph: onnx.GraphProto) -> str:
    """The tensor whose values the output has: where the classifier is a 1x1 convolution, that one's result."""
    producers = {name: node for node in graph.node for name in node.output}
    name: str = graph.output[0].name
    while name in producers and producers[name].op_type in _NO_ARITHMETIC:
        name = producers[name].input[0]
    return name


def _unshare_weights(graph: onnx.GraphProto) -> None:
    """Give every further user of an int8 weight a copy: a detector's head has one for all its levels.

    ONNX Runtime, told to sum int8 products exactly, rewrites each user's weight under one name and fails on the second.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    sources = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    sources = {name: node for name, node in sources.items() if node.input[0] in stored}
    seen: Counter[str] = Counter()
    for node in list(graph.node):
        for position, name in enumerate(node.input):
            if name not in sources:
                continue
            if seen[name]:
                copy = onnx.NodeProto()
                copy.CopyFrom(sources[name])
                suffix = f"_{seen[name]}"
                copy.name, copy.output[0] = copy.name + suffix, name + suffix
                for index, part in enumerate(copy.input):
                    tensor = onnx.TensorProto()
                    tensor.CopyFrom(stored[part])
                    copy.input[index] = tensor.name = part + suffix
                    graph.initializer.append(tensor)
                graph.node.append(copy)
                node.input[position] = copy.output[0]
            seen[name] += 1


def _num_judged(proto: onnx.ModelProto) -> int:
    """Fewer of a detector's, whose images are larger and whose layers are more."""
    return NUM_JUDGED if len(proto.graph.output[0].type.tensor_type.shape.dim) == 2 else NUM_JUDGED // 8


def sensitivity(proto: onnx.ModelProto, ranges: Ranges, inputs: NDArray[np.float32]) -> list[Json]:
    """What each layer costs when it alone is int8: {"layer", "node", "sqnr_db", "max_abs_error"}, the worst first.

    sqnr_db is that of the logits; None where they do not change at all.
    """
    reference = outputs_of_preprocessed(graph_forward(proto), inputs)
    rows = []
    for name, nodes in _by_layer(proto).items():
        forward = graph_forward(with_qdq(proto, ranges, only=[node.name for node in nodes]))
        found = compare(reference, outputs_of_preprocessed(forward, inputs))
        kept = {key: found[key] for key in ("sqnr_db", "max_abs_error")}
        rows.append({"layer": name, "node": nodes[0].name, **kept})
    return sorted(rows, key=lambda row: np.inf if row["sqnr_db"] is None else row["sqnr_db"])


def layers(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that can be quantised: convolutions and linear layers with constant weights."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [node for node in proto.graph.node if node.op_type in OP_TYPES and node.input[1] in weights]


def _by_layer(proto: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes of each layer: several where it is used several times, as a detector's head on every level."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in layers(proto):
        found.setdefault(layer_name(node), []).append(node)
    return found


def layer_name(node: onnx.NodeProto) -> str:
    """The module's name in the network (`layer1.0.conv1`), as far as the exporter left it; else the node's."""
    weight: str = node.input[1]
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight").removeprefix("model.")
    if node.name.startswith("/"):  # torch's older exporter folds weights under new names, but keeps the modules' path
        *path, _ = node.name.strip("/").split("/")
        inner = zip(path, [*path[1:], ""], strict=True)  # downsample/downsample.0 repeats a name
        return ".".join(part for part, child in inner if not child.startswith(f"{part}.")).removeprefix("model.")
    return str(node.name)


def excluded_nodes(proto: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """The nodes that these names of layers or nodes mean; UserError naming the nearest where there is none."""
    known: dict[str, list[str]] = {}
    for layer, nodes in _by_layer(proto).items():
        known[layer] = [node.name for node in nodes]
        known |= {node.name: [node.name] for node in nodes if node.name != layer}
    known = {name.removeprefix(WRAPPED): nodes for name, nodes in known.items()} | known
    for name in names:
        if name not in known:
            raise UserError("E_EXPORT_SETTING", f"export.int8_exclude: {unknown('layer', name, known)}")
    return [node for name in names for node in known[name]]
