"""What can be known of an ONNX file before NVIDIA's parser sees it: per release, and what a DLA leaves to the GPU.

Each check is there because the parser refuses it; where a real parser is at hand (TensorRT-RTX), that is the
stronger answer, and these say only why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from afpkd.errors import UserError
from export.beside import files_beside

if TYPE_CHECKING:
    import onnx

_MAX_OPSET = (((11, 0), 25), ((10, 15), 24), ((10, 0), 20), ((9, 0), 19), ((8, 4), 17))
"""From this TensorRT on, the highest opset its parser documents (onnx-tensorrt's docs/operators.md of each release;
NVIDIA's ONNX opset guide for 11). Releases between may take more than the row before them says."""

RTX = "rtx"
"""TensorRT-RTX counts its releases anew; its parser is TensorRT 11's."""

_DLA_NATIVE = re.findall(
    r"\w+",
    """
    Abs Add AveragePool BatchNormalization Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Equal Flatten
    Gemm Identity LRN LeakyRelu MatMul Max MaxPool Mul PRelu Relu Reshape Resize Shape Sigmoid Slice Softmax Squeeze Sub
    Sum Tanh Transpose Unsqueeze Upsample
    """,
)
"""What Orin's DLA runs natively through TensorRT (the table of NVIDIA's Deep-Learning-Accelerator-SW, operators/,
TensorRT 8.5). Flatten, Identity, Squeeze and Unsqueeze are not in it, but become the Shuffle layers that are. Not
native, among others: GlobalAveragePool, ReduceMean, Split, Div, Sqrt, Exp."""

_OPSET_OF_8 = 17
"""The highest that any TensorRT 8 parses."""

_FLOAT16 = 10  # onnx.TensorProto.FLOAT16: onnx is imported where a file is read


class Finding(NamedTuple):
    """One reason why a file will not do, in one line."""

    code: str
    """`opset`, `dynamic`, `int64`, `external`, `bias`, `uint8`, `asymmetric`, `stored`."""
    message: str
    """Which node or tensor, why, what to do."""


def check_onnx(path: Path, tensorrt: str) -> list[Finding]:
    """List what TensorRT `tensorrt` ("8.6", "10.3", "rtx") refuses in the file.

    UserError where it is no ONNX file, or the release older than 8.4.
    """
    model = _loaded(path)
    return [*_opset(model, tensorrt), *_inputs(model), *_quantisation(model), *_stored(model, tensorrt)]


def precision_of(path: Path) -> str:
    """Say what a weakly typed build (TensorRT 8) must allow to compute the file as it is written: int8, fp16 or fp32.

    int8: it holds quantised tensors (Q/DQ); fp16: it has a weight of that type. UserError where it is no ONNX file.
    """
    model = _loaded(path)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    if any(node.op_type == "DequantizeLinear" for node in nodes):
        return "int8"
    values = [entry.t for node in nodes if node.op_type == "Constant" for entry in node.attribute]
    halves = [tensor for tensor in (*model.graph.initializer, *values) if tensor.data_type == _FLOAT16]
    return "fp16" if halves else "fp32"


def weights_beside(path: Path) -> dict[str, Path]:
    """Name the files in which its weights lie; see `export.beside.files_beside`."""
    return files_beside(path, _loaded(path))


def not_native_on_dla(path: Path) -> dict[str, int]:
    """Count the nodes, by operator, that a DLA hands back to the GPU."""
    return dict(sorted(Counter(n.op_type for n in _loaded(path).graph.node if n.op_type not in _DLA_NATIVE).items()))


def fixed_batch(path: Path) -> int | None:
    """Give the batch a file is written for, None where it leaves it open."""
    model = _loaded(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in weights)
    return int(image.type.tensor_type.shape.dim[0].dim_value) or None


def _loaded(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # the disk's errors, and protobuf's, which ships no types
        raise UserError("E_ONNX_FILE", f"{path}: not a readable ONNX file ({error}): export it again") from None
    if not model.graph.node:
        raise UserError("E_ONNX_FILE", f"{path}: an ONNX file without a single node: export it again")
    return model


def _opset(model: onnx.ModelProto, tensorrt: str) -> Iterator[Finding]:
    limit, written = _max_opset(tensorrt), {entry.domain: entry.version for entry in model.opset_import}
    opset = written.get("", written.get("ai.onnx", 0))
    if opset > limit:
        advice = "take the recipe's legacy files" if limit <= _OPSET_OF_8 else "export with a lower opset"
        yield Finding("opset", f"opset {opset}, but TensorRT {tensorrt} parses up to {limit}: {advice}")
    for domain in sorted(set(written) - {"", "ai.onnx"}):
        used = next((node.name for node in model.graph.node if node.domain == domain), None)
        if used is not None:
            yield Finding("opset", f"node {used} is of operator set {domain}: no TensorRT parser knows it")


def _max_opset(tensorrt: str) -> int:
    if tensorrt == RTX:
        return _MAX_OPSET[0][1]
    numbers = re.match(r"(\d+)\.(\d+)", tensorrt)
    if numbers is None:
        raise UserError("E_USAGE", f"TensorRT version {tensorrt!r}: expected one like 10.3, or {RTX}")
    release = (int(numbers[1]), int(numbers[2]))
    for since, opset in _MAX_OPSET:
        if release >= since:
            return opset
    raise UserError("E_OLD", f"TensorRT {tensorrt} is too old: 8.5 (JetPack 5.1) is the oldest that will do")


def _inputs(model: onnx.ModelProto) -> Iterator[Finding]:
    from onnx import TensorProto

    weights = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            yield Finding(
                "external", f"weights {tensor.name} lie in another file, which would not travel: export whole"
            )
            break
    for value in model.graph.input:
        if value.name in weights:
            continue
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            yield Finding("int64", f"input {value.name} is INT64: TensorRT 8 narrows it to INT32: export it as INT32")
        sizes = [dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
        if any(isinstance(size, str) for size in sizes[1:]):
            message = f"input {value.name} has the shape {sizes}: an engine needs all but the batch fixed: export it so"
            yield Finding("dynamic", message)


def _stored(model: onnx.ModelProto, tensorrt: str) -> Iterator[Finding]:
    """TensorRT 8 keeps no int8 weights: "only activation types allowed as input to this layer" (onnxruntime#14229)."""
    from onnx import TensorProto

    int8 = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    stored = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in int8]
    if stored and _max_opset(tensorrt) <= _OPSET_OF_8:
        yield Finding(
            "stored",
            f"node {stored[0].name or stored[0].output[0]} dequantises weights that are stored as int8, which TensorRT "
            f"{tensorrt} refuses: take the recipe's legacy files, or keep them float behind Q and DQ",
        )


def _quantisation(model: onnx.ModelProto) -> Iterator[Finding]:
    """Explicit Q/DQ as TensorRT takes it: symmetric int8 of activations and weights; biases stay float."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source, zero = constants.get(node.input[0]), constants.get(node.input[2]) if len(node.input) > 2 else None
        name = node.name or node.output[0]
        if source is not None and source.data_type == TensorProto.INT32:
            yield Finding(
                "bias", f"node {name} dequantises an int32 bias: quantise without biases (QuantizeBias=False)"
            )
        elif zero is None and len(node.input) == 2 and node.op_type == "QuantizeLinear":
            yield Finding("uint8", f"node {name} names no zero point, which means uint8: quantise to int8")
        elif zero is not None and zero.data_type == TensorProto.UINT8:
            yield Finding("uint8", f"node {name} quantises to uint8: quantise to int8, symmetric")
        elif zero is not None and numpy_helper.to_array(zero).any():
            yield Finding("asymmetric", f"node {name} has a zero point other than 0: quantise symmetrically")
