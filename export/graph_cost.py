"""MACs and parameters of an ONNX graph, for models that come without their source. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx

from afpkd.errors import UserError
from afpkd.record import Json
from export.graph_shapes import tensors_of


def graph_cost(proto: onnx.ModelProto, input_shape: tuple[int, ...]) -> Json:
    """Count convolutions and matrix products of one image of `input_shape` (C, H, W), the keys of `cost.macs_of`.

    `unsupported_ops` lists the operators that are no such products and were not counted (activations, pooling, ...).
    UserError where a shape that the count needs cannot be inferred.
    """
    shapes = {name: facts.shape for name, facts in tensors_of(proto, input_shape).items()}
    by_layer: dict[str, int] = {}
    others: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type in _COUNTERS:
            name = node.name or node.output[0]  # several may have one name: ONNX asks for none
            by_layer[name] = by_layer.get(name, 0) + _COUNTERS[node.op_type](node, shapes)
        else:
            others[node.op_type] = others.get(node.op_type, 0) + 1
    macs = sum(by_layer.values())
    return {
        "num_params": num_parameters(proto),
        "macs": macs,
        "fvcore": None,
        "torch": None,
        "agree": True,
        "note": "counted from the ONNX graph: convolutions and matrix products",
        "by_layer": by_layer,
        "excluded_ops": {},
        "unsupported_ops": others,
    }


def num_parameters(proto: onnx.ModelProto) -> int:
    """Count the values that training found: weights, also as integers, without scales, zero points and shapes.

    As in torch, a BatchNorm's running statistics are left out.
    """
    uses = [(node.op_type, place, name) for node in proto.graph.node for place, name in enumerate(node.input)]
    others = {name for operator, place, name in uses if place in _NO_WEIGHTS.get(operator, ())}
    integers = {name for operator, place, name in uses if place in _INTEGERS.get(operator, ())}
    products = {name for operator, _, name in uses if operator in _COUNTERS}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:  # some exporters write weights as operators
        if node.op_type == "Constant" and node.output[0] in products | integers:
            tensors |= {name: entry.t for entry in node.attribute for name in node.output if entry.name == "value"}
    return sum(
        math.prod(tensor.dims)
        for name, tensor in tensors.items()
        if name in integers or (tensor.data_type in _FLOATS and name not in others)
    )


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_NO_WEIGHTS = {  # inputs that say how integers are meant, or what was measured
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
}
_INTEGERS = {  # inputs that hold weights as integers
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
}
_Shapes = Mapping[str, list[int]]


def _of(name: str, shapes: _Shapes) -> list[int]:
    shape = shapes.get(name)
    if not shape or not all(shape):
        raise UserError(
            "E_ONNX_FIT", f"the shape of {name} cannot be inferred from the graph: export the model with fixed sizes"
        )
    return shape


def _convolution(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Output positions x channels x what each sums: the weight holds O, I / groups, kernel."""
    weight = node.input[3 if node.op_type == "QLinearConv" else 1]
    return math.prod(_of(node.output[0], shapes)) * math.prod(_of(weight, shapes)[1:])


def _transposed(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Each input value meets the weight I, O / groups, kernel once."""
    return math.prod(_of(node.input[0], shapes)) * math.prod(_of(node.input[1], shapes)[1:])


def _product(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Output values x the inner dimension."""
    flipped = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(_of(node.output[0], shapes)) * _of(node.input[0], shapes)[-2 if flipped else -1]


_COUNTERS: dict[str, Callable[[onnx.NodeProto, _Shapes], int]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _product,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
}
