"""An ONNX file that somebody else made, brought into the form that a bundle's files have. No torch.

One float32 input "input" (batch, C, H, W) with a dynamic batch, one output "logits" (batch, K), the operator set asked
for. What cannot be brought there is refused with the reason: nothing is guessed.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from onnx import TensorProto, ValueInfoProto, version_converter

from afpkd.errors import UserError

_FLOAT = int(TensorProto.FLOAT)
_STANDARD = {"", "ai.onnx"}
_IR = 10  # the newest that ONNX Runtime 1.18 reads, as `export.files` says; later ones brought small number types alone


def graph_from_file(path: Path, *, channels: int, image_size: tuple[int, int], num_classes: int) -> onnx.ModelProto:
    """Read a foreign ONNX file; UserError where it is broken, or no classifier of such images."""
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError("E_ONNX_FILE", f"{path}: {error.strerror}: name an ONNX file") from None
    except Exception as error:  # protobuf, the checker and the reader of external data each raise errors of their own
        raise UserError("E_ONNX_FILE", f"{path}: not a valid ONNX file: {_line(error)}") from None
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    outputs = list(proto.graph.output)
    _require(path, "input", inputs, [channels, *image_size])
    _require(path, "output", outputs, [num_classes])
    _rename(proto, {inputs[0].name: "input", outputs[0].name: "logits"})
    for value, sizes in ((inputs[0], [channels, *image_size]), (outputs[0], [num_classes])):
        batch, *others = value.type.tensor_type.shape.dim
        batch.dim_param = "batch"
        for dim, size in zip(others, sizes, strict=True):  # one that the file leaves open is what the spec says
            dim.dim_value = size
    proto.graph.ClearField("value_info")  # shapes of a fixed batch
    proto.ir_version = min(proto.ir_version, _IR)
    _name_nodes(proto.graph)
    return proto


def at_opset(proto: onnx.ModelProto, opset: int, path: Path) -> onnx.ModelProto:
    """Give the graph in operator set `opset`; UserError where ONNX cannot convert it."""
    written = {entry.domain: entry.version for entry in proto.opset_import}
    foreign = sorted(_domains(proto) - _STANDARD)
    if foreign:
        raise UserError(
            "E_ONNX_FIT", f"{path}: uses operators of {', '.join(foreign)}, which not every runtime has: export without"
        )
    found = written.get("", written.get("ai.onnx"))
    for entry in [entry for entry in proto.opset_import if entry.domain not in _STANDARD]:
        proto.opset_import.remove(entry)  # named, but no node is of it
    if found == opset:
        return proto
    try:
        return version_converter.convert_version(proto, opset)
    except Exception as error:  # the converter raises RuntimeErrors of its own
        raise UserError("E_ONNX_FIT", f"{path}: opset {found} cannot be converted to {opset}: {_line(error)}") from None


def _domains(proto: onnx.ModelProto) -> set[str]:
    """Of which operators the model has nodes, those of branches, loops and functions included."""
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    found = set[str]()
    while nodes:
        node = nodes.pop()
        found.add(node.domain)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                nodes += graph.node
    return found


def _require(path: Path, what: str, values: list[ValueInfoProto], sizes: list[int]) -> None:
    if len(values) != 1:
        names = ", ".join(value.name for value in values) or "none"
        raise UserError("E_ONNX_FIT", f"{path}: one {what} was expected, it has {len(values)} ({names})")
    tensor = values[0].type.tensor_type
    found = [dim.dim_param or dim.dim_value or "?" for dim in tensor.shape.dim]
    fits = len(found) == len(sizes) + 1 and all(
        isinstance(size, str) or size == wanted for size, wanted in zip(found[1:], sizes, strict=True)
    )
    if not fits or tensor.elem_type != _FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise UserError(
            "E_ONNX_FIT",
            f"{path}: {what} {values[0].name} is {kind} {found}, expected float [batch, {', '.join(map(str, sizes))}]: "
            "mend the spec or export the model again",
        )


def _rename(proto: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename tensors of the main graph; one that already has such a name makes way."""
    taken = {new: f"{new}_of_the_file" for new in names.values() if new not in names}
    names = {**taken, **names}
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = names.get(value.name, value.name)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own (`Conv_3` to the fourth), by which int8 tells layers: ONNX asks for none."""
    given = Counter(node.name for node in graph.node)
    for number, node in enumerate(graph.node):
        if not node.name or given[node.name] > 1:
            node.name = f"{node.op_type}_{number}"
            while node.name in given:
                node.name += "_"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
