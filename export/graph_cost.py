"""MACs and parameters of an ONNX graph, for models that come without their source. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx

from afpkd.record import Json, UserError


def graph_cost(proto: onnx.ModelProto, input_shape: tuple[int, ...]) -> Json:
    """Count convolutions and matrix products of one image of `input_shape` (C, H, W), the keys of `cost.macs_of`.

    `unsupported_ops` lists the operators that are no such products and were not counted (activations, pooling, ...).
    UserError where a shape that the count needs cannot be inferred.
    """
    shapes = _shapes(proto, input_shape)
    by_layer: dict[str, int] = {}
    others: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type in _COUNTERS:
            by_layer[node.name or node.output[0]] = _COUNTERS[node.op_type](node, shapes)
        else:
            others[node.op_type] = others.get(node.op_type, 0) + 1
    macs = sum(by_layer.values())
    return {
        "num_params": sum(math.prod(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type in _FLOATS),
        "macs": macs,
        "fvcore": None,
        "torch": None,
        "agree": True,
        "note": "counted from the ONNX graph: convolutions and matrix products",
        "by_layer": by_layer,
        "excluded_ops": {},
        "unsupported_ops": others,
    }


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_Shapes = dict[str, list[int]]


def _shapes(proto: onnx.ModelProto, input_shape: tuple[int, ...]) -> _Shapes:
    """Shapes of all tensors for a batch of 1."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    weights = {tensor.name: list(tensor.dims) for tensor in copy.graph.initializer}
    for value in copy.graph.input:
        if value.name not in weights:
            for dim, size in zip(value.type.tensor_type.shape.dim, (1, *input_shape), strict=True):
                dim.dim_value = size
    for value in copy.graph.output:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    known = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in known} | weights


def _of(name: str, shapes: _Shapes) -> list[int]:
    shape = shapes.get(name)
    if not shape or not all(shape):
        raise UserError(f"the shape of {name} cannot be inferred from the graph: export the model with fixed sizes")
    return shape


def _convolution(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Output positions x channels x what each sums: the weight holds O, I / groups, kernel."""
    return math.prod(_of(node.output[0], shapes)) * math.prod(_of(node.input[1], shapes)[1:])


def _transposed(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Each input value meets the weight I, O / groups, kernel once."""
    return math.prod(_of(node.input[0], shapes)) * math.prod(_of(node.input[1], shapes)[1:])


def _product(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Output values x the inner dimension."""
    flipped = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(_of(node.output[0], shapes)) * _of(node.input[0], shapes)[-2 if flipped else -1]


_COUNTERS: dict[str, Callable[[onnx.NodeProto, _Shapes], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _product,
    "MatMul": _product,
}
