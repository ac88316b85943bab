"""The files in which an ONNX model's weights lie beside it (external data, as torch's exporter writes it). No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from afpkd.errors import UserError

if TYPE_CHECKING:
    import onnx


def files_beside(model: Path, proto: onnx.ModelProto) -> dict[str, Path]:
    """Name as the model has it, relative to its folder -> file. UserError: one is missing, or not in that folder."""
    found = {}
    for place in dict.fromkeys(_locations(proto.graph)):
        path, parts = model.parent / place, PurePosixPath(place).parts
        if not parts or ".." in parts or PurePosixPath(place).is_absolute():
            raise UserError("E_ONNX_FILE", f"{model}: its weights lie in {place!r}, not in its folder: export it again")
        if not path.is_file():
            raise UserError("E_ONNX_FILE", f"{model}: its weights lie in {path}, which is missing")
        found[place] = path
    return found


def _locations(graph: onnx.GraphProto) -> Iterator[str]:
    """Of a graph and of those inside its nodes (If, Loop)."""
    for tensor in graph.initializer:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (attribute.g, *attribute.graphs):
            yield from _locations(inner)
