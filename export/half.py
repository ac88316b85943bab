"""float32 graph -> float16 graph with float32 inputs and outputs: a graph is all it needs, so foreign files take it too.

The conversion is ONNX Runtime's own (its copy of onnxconverter-common's float16, MIT, in a package that is here anyway).
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)  # 2^-14: below it float16 loses bits
OPSET_OF_HALF_QUANTIZATION = 19
"""From here on QuantizeLinear takes float16."""


def half_from_float(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give a copy that computes in float16 between a cast of its input and one of its output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return _sorted(convert_float_to_float16(copy, keep_io_types=True))


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
    return np.rint(stored * factor.reshape(shape)).astype(np.int8)


def _sorted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes in the order of their inputs, which ONNX demands: the conversion appends its casts at the end."""
    model = ONNXModel(proto)
    model.topological_sort()
    sorted_proto: onnx.ModelProto = model.model
    return sorted_proto
