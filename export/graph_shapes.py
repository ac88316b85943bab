"""What an ONNX graph says of its tensors for one image: their shapes and how many bytes a value takes. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import TensorProto

from afpkd.errors import UserError

_BITS = {  # of those that travel through graphs of images; others have no place in memory that is known here
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.INT64: 64,
    TensorProto.UINT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}


class TensorFacts(NamedTuple):
    """Shape for a batch of 1 (0: not known), and bits a value (0: not known)."""

    shape: list[int]
    bits: int

    @property
    def num_bytes(self) -> int | None:
        """Memory it takes; None where its shape or type is not known."""
        known = self.bits and all(self.shape)
        return -(-math.prod(self.shape) * self.bits // 8) if known else None


def tensors_of(proto: onnx.ModelProto, input_shape: Sequence[int]) -> dict[str, TensorFacts]:
    """Infer every tensor of the main graph for one image of `input_shape` (C, H, W), weights among them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.ClearField("value_info")  # written for another batch, perhaps
    weights = {
        tensor.name: TensorFacts(list(tensor.dims), _bits(tensor.data_type)) for tensor in proto.graph.initializer
    }
    for value in copy.graph.input:
        if value.name not in weights:
            for dim, size in zip(value.type.tensor_type.shape.dim, (1, *input_shape), strict=True):
                dim.dim_value = size
    for value in copy.graph.output:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    known = {value.name: value.type.tensor_type for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    found = {
        name: TensorFacts([dim.dim_value for dim in tensor.shape.dim], _bits(tensor.elem_type))
        for name, tensor in known.items()
    }
    return found | weights


def input_shape_of(path: Path, proto: onnx.ModelProto, given: Sequence[int] | None) -> tuple[int, ...]:
    """Give the image's shape (C, H, W) that the file fixes, or `given`; UserError where it has none, or another one."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError("E_ONNX_FIT", f"{path}: one input was expected, it has {len(inputs)} ({names})")
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim][1:]
    shape = tuple(given) if given else tuple(dims)
    fits = len(shape) == len(dims) and all(fixed in (0, size) for fixed, size in zip(dims, shape, strict=True))
    if not fits or not shape or min(shape) < 1:
        written = "x".join(str(size or "?") for size in dims)
        raise UserError(
            "E_ONNX_FIT",
            f"{path}: its input is {written} (without the batch): say how large with --input, such as 3x224x224",
        )
    return shape


def _bits(data_type: int) -> int:
    return _BITS.get(data_type, 0)  # type: ignore[call-overload,no-any-return] # an enum's members are integers
