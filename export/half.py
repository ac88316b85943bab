"""float32 graph -> float16 graph with float32 inputs and outputs. A graph is all it needs: foreign files take it too.

The conversion is ONNX Runtime's own (onnxconverter-common's float16, MIT, in a package that is here anyway).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from export.calibration import ranges_of

LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)  # 2^-14: below it float16 loses bits
LEGACY_OPSET = 17
"""Of files for TensorRT 8.5 and 8.6."""
IN_FLOAT = ("InstanceNormalization",)
"""TensorRT 8 hands its scale and bias to a plugin, which reads them as float32 whatever their type."""
OPSET_OF_HALF_QUANTIZATION = 19
"""From here on QuantizeLinear takes float16."""


def half_from_float(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give a copy that computes in float16 between a cast of its input and one of its output.

    In a file for TensorRT 8 `IN_FLOAT` stays in float32, between casts of its own.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for_8 = any(entry.domain in ("", "ai.onnx") and entry.version <= LEGACY_OPSET for entry in proto.opset_import)
    in_float = IN_FLOAT if for_8 else ()
    _tensors_of_constants(copy.graph)
    _take_weights(copy.graph, in_float)
    half = convert_float_to_float16(copy, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *in_float])
    _forget_types_of_weights(half.graph)
    return sorted_graph(half)


def _tensors_of_constants(graph: onnx.GraphProto) -> None:
    """Constants given as plain floats become tensors, the form that the conversion knows."""
    for node in graph.node:
        for value in node.attribute if node.op_type == "Constant" else ():
            if value.name in ("value_float", "value_floats"):
                floats = np.asarray(value.f if value.name == "value_float" else value.floats, np.float32)
                value.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(floats)))


def _take_weights(graph: onnx.GraphProto, operators: Sequence[str]) -> None:
    """Give each of these operators weights of its own: those that it shared with others would be float16, and cast."""
    values = {node.output[0]: node.attribute[0] for node in graph.node if node.op_type == "Constant"}
    known = {name: value.t for name, value in values.items() if value.name == "value"}
    known |= {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for place, name in enumerate(node.input) if node.op_type in operators else ():
            if name in known:
                node.input[place] = f"{node.output[0]}_weight_{place}"
                array = numpy_helper.to_array(known[name])
                graph.initializer.append(numpy_helper.from_array(array, node.input[place]))


def _forget_types_of_weights(graph: onnx.GraphProto) -> None:
    """Delete what is said of weights beside them: Resize's `scales` stay float32, and would be told as float16."""
    weights = {tensor.name for tensor in graph.initializer}
    values = [value for value in graph.value_info if value.name not in weights]
    graph.ClearField("value_info")
    graph.value_info.extend(values)


def overflow(proto: onnx.ModelProto, images: NDArray[np.float32]) -> str | None:
    """Say which tensor of a float32 graph exceeds float16's 65504, its weights or what they make of `images`.

    Asked because ONNX Runtime on x86 computes a float16 file in float32, where nothing overflows.
    """
    largest = {tensor.name: _largest(numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer}
    ranges = ranges_of(proto, images, sorted({node.op_type for node in proto.graph.node}), "minmax")
    largest |= {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
    name = max(largest, key=lambda tensor: largest[tensor])
    return f"{name} reaches {largest[name]:.3g}, beyond float16's {LARGEST:.0f}" if largest[name] > LARGEST else None


def _largest(values: NDArray[np.float32]) -> float:
    return float(np.abs(values).max(initial=0.0)) if values.dtype == np.float32 else 0.0


def half_from_quantized(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same Q/DQ nodes and int8 weights with a float16 remainder: scales too, as opset 19 demands.

    A scale below float16's smallest normal number is raised to it and its int8 weights are rounded anew: they are so
    small that nothing is lost. opset: at least 19; the graph is converted up to it.
    """
    assert opset >= OPSET_OF_HALF_QUANTIZATION, "QuantizeLinear takes float16 from opset 19 on"
    raised = version_converter.convert_version(proto, opset)
    _raise_small_scales(raised.graph)
    return half_from_float(raised)


def _raise_small_scales(graph: onnx.GraphProto) -> None:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in weights:
            continue
        stored, scale = (weights[name] for name in node.input[:2])
        small = numpy_helper.to_array(scale)
        large = np.maximum(small, np.float32(SMALLEST_NORMAL))
        if (large != small).any():
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            rounded = _rescaled(numpy_helper.to_array(stored), small / large, axis)
            stored.CopyFrom(numpy_helper.from_array(rounded, stored.name))
            scale.CopyFrom(numpy_helper.from_array(large, scale.name))


def _rescaled(stored: NDArray[np.int8], factor: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """Multiply int8 values by a factor of at most 1 a channel of `axis` (or one for all), rounded."""
    shape = [-1 if dim == axis and factor.size > 1 else 1 for dim in range(stored.ndim)]
    rounded: NDArray[np.int8] = np.rint(stored * factor.reshape(shape)).astype(np.int8)
    return rounded


def sorted_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put nodes in the order of their inputs, which ONNX demands: ONNX Runtime's tools append theirs at the end."""
    model = ONNXModel(proto)
    model.topological_sort()
    sorted_proto: onnx.ModelProto = model.model
    return sorted_proto
