"""torch -> one ONNX file with a dynamic batch, and the proof before training that this will work.

Opset 18 by default: from 19 on, ONNX Runtime on Arm has no kernel for an fp16 AveragePool. Below 18 torch's present
exporter writes nothing: opset 17, for TensorRT 8.5 and 8.6, comes from its older one (`dynamo=False`).
"""

from __future__ import annotations

import ast
import contextlib
import io
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afpkd.errors import UserError
from afpkd.record import atomic_path
from export.half import half_from_float
from export.inference import DETECTIONS, LOGITS, logits_only, output_name
from export.quantize import layers
from export.verify import run_onnx

OPSET = 18
OLDEST_DYNAMO = 18  # asked for less, dynamo=True writes 18 all the same
_SCOPES = "pkg.torch.onnx.name_scopes"
"""The exporter's note of a node: "['', 'model', 'model.fc', 'linear']"."""


def onnx_from_model(model: nn.Module, example: Tensor, path: Path, *, opset: int = OPSET) -> None:
    """Write `model` in eval mode as one ONNX file, atomically; the same weights give the same bytes.

    example: 1 or more inputs, float32 N, C, H, W. The file has one input, "input" (batch, C, H, W), and one output,
    "logits" (batch, K) or "detections" (batch, A, 4 + K), with a dynamic batch. `model` itself stays as it is.
    UserError where it cannot be exported.
    """
    save_graph(graph_from_model(model, example, opset=opset), path, opset=opset)


def graph_from_model(model: nn.Module, example: Tensor, *, opset: int = OPSET) -> onnx.ModelProto:
    """Give the graph of `onnx_from_model` without writing it. UserError where the model cannot be exported."""
    try:
        proto = _traced(model, example, opset) if opset >= OLDEST_DYNAMO else _scripted(model, example, opset)
        _name_layers(proto)
        _strip_notes(proto)
        _check_interface(proto, example, opset, output_name(model))
    except Exception as error:  # tracer, decompositions and translator each raise errors of their own
        raise UserError(
            "E_EXPORT_TORCH", f"{type(model).__name__} cannot be exported to ONNX opset {opset}: {_cause(error)}"
        ) from error
    return proto


def save_graph(proto: onnx.ModelProto, path: Path, *, opset: int) -> None:
    """Write a graph with its weights as one checked file, atomically; UserError where it is no valid ONNX."""
    try:
        with atomic_path(path) as temporary:
            onnx.save(proto, temporary)  # weights inside: one file
            onnx.checker.check_model(str(temporary), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError("E_EXPORT_TORCH", f"{path.name} is no valid ONNX of opset {opset}: {_cause(error)}") from error


def dry_run_export(
    model: nn.Module, example: Tensor, *, arch: str | None = None, opsets: Sequence[int] = (OPSET,), half: bool = False
) -> None:
    """Prove before training that `model` can be exported and runs at any batch size; nothing is kept, nothing changed.

    opsets: all that will be asked for; the old one of `export.legacy` has an exporter of its own. half: whether in
    float16 too. UserError in one line: `arch` (by default the class's name) and the cause.
    """
    image = example[:1].detach().cpu().numpy()
    for opset in opsets:
        mend = "mend its forward before training" + _other_way(opset)
        try:
            proto = graph_from_model(model, example, opset=opset)
            _check_file(proto, "fp32.onnx", image, opset)
            if half:
                mend += ", or leave fp16 and int8 out of export.precisions"
                _check_file(half_from_float(proto), "fp16.onnx", image, opset)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            told = f"model {arch or type(model).__name__}: {_cause(error)}: {mend}"
            raise UserError("E_EXPORT_TORCH", told) from error


def _check_file(proto: onnx.ModelProto, name: str, image: NDArray[np.float32], opset: int) -> None:
    """It is valid ONNX and takes any number of images."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        save_graph(proto, path, opset=opset)
        for batch in (1, 3):
            _check_batch(path, np.repeat(image, batch, axis=0))


def _other_way(opset: int) -> str:
    if opset < OLDEST_DYNAMO:
        return ", or leave export.legacy out"
    return f", or let export.opset be {OPSET}" if opset != OPSET else ""


def _traced(model: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    # Two images, since a tracer may take a dimension of 1 for a constant.
    images = example[:1].detach().cpu().repeat(2, 1, 1, 1)
    # On an untraceable model torch dumps the graph so far, and log lines, on stderr: the exception says what failed.
    # (On a traceable one torch 2.14.1 says nothing, and warns of nothing in eval mode.)
    with contextlib.redirect_stderr(io.StringIO()):
        program = torch.onnx.export(
            logits_only(model),
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=["input"],
            output_names=[output_name(model)],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None, "dynamo=True returns a program"
    return program.model_proto


def _scripted(model: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    """Torch's older exporter, the only one that writes opset 17; it says that it will go away."""
    images, file = example[:1].detach().cpu().repeat(2, 1, 1, 1), io.BytesIO()
    # An untraceable model is dumped on stdout; the exception says what failed.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # not in its __all__
        torch.onnx.export(
            logits_only(model),
            (images,),
            file,  # type: ignore[arg-type]  # the older exporter writes to a buffer as well
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=[output_name(model)],
            dynamic_axes={"input": {0: "batch"}, output_name(model): {0: "batch"}},
        )
    proto = onnx.load_from_string(file.getvalue())
    _drop_aliases(proto.graph)
    return proto


def _drop_aliases(graph: onnx.GraphProto) -> None:
    """Let every consumer of a weight name it: equal ones reach their second consumer through an Identity."""
    weights = {tensor.name for tensor in graph.initializer}
    aliases = {node.output[0]: node for node in graph.node if node.op_type == "Identity" and node.input[0] in weights}
    for node in graph.node:
        node.input[:] = [aliases[name].input[0] if name in aliases else name for name in node.input]
    for alias in aliases.values():
        graph.node.remove(alias)


def _name_layers(proto: onnx.ModelProto) -> None:
    """Keep the module's name of a linear layer on maps or tokens: its weight is transposed, and called `val_6` then."""
    for node in layers(proto):
        notes = {note.key: note.value for note in node.metadata_props}
        *modules, _ = ast.literal_eval(notes.get(_SCOPES, "['']"))
        if modules and not node.input[1].endswith(".weight"):
            node.name = f"/{modules[-1]}/{node.name}"  # as the older exporter has it


def _strip_notes(message: Any) -> None:  # a protobuf message; protobuf ships no types
    """Delete what the exporter notes beside the graph, at every level: stack traces with this machine's paths."""
    for field in ("metadata_props", "doc_string"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in value if descriptor.is_repeated else (value,):
                _strip_notes(part)


def _check_interface(proto: onnx.ModelProto, example: Tensor, opset: int, name: str) -> None:
    """The file on disk says what the manifest will say of it."""
    inputs, outputs = (
        {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
        for values in (proto.graph.input, proto.graph.output)
    )
    if inputs != {"input": ["batch", *example.shape[1:]]}:
        raise UserError("E_EXPORT_TORCH", f"its inputs became {inputs}: the batch must stay dynamic, the rest fixed")
    shape = outputs.get(name, [])
    rest = {LOGITS: ["classes"], DETECTIONS: ["locations", "4 + classes"]}[name]
    fixed = all(isinstance(size, int) for size in shape[1:])
    if len(outputs) != 1 or len(shape) != 1 + len(rest) or shape[0] != "batch" or not fixed:
        raise UserError(
            "E_EXPORT_TORCH", f"its outputs became {outputs}, expected {{'{name}': ['batch', {', '.join(rest)}]}}"
        )
    # The exporter keeps a higher opset, with a mere log line, where it cannot convert down.
    written = {entry.domain: entry.version for entry in proto.opset_import}
    if written != {"": opset}:
        raise UserError("E_EXPORT_TORCH", f"its operator sets became {written}")


def _check_batch(path: Path, images: NDArray[np.float32]) -> None:
    num_rows = len(run_onnx(path, images, len(images)))
    if num_rows != len(images):
        raise UserError("E_EXPORT_TORCH", f"its ONNX file gives {num_rows} rows for {len(images)} images")


def _cause(error: BaseException) -> str:
    """The first line of the error at the bottom of the chain: torch wraps the cause in pages of advice."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    if isinstance(error, UserError):
        return error.message
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
