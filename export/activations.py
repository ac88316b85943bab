"""How much memory the values between a graph's operators need. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from afpkd.record import Json
from export.graph_shapes import tensors_of


def activation_memory(proto: onnx.ModelProto, input_shape: Sequence[int]) -> Json:
    """Walk the graph in its order for one image of `input_shape` (C, H, W), and give its largest need at one time.

    A value lives from the operator that makes it (the input: from the start) to the last that reads it (an output: to
    the end); while an operator works, what it reads and what it writes both live. Nothing is fused, nothing written in
    place, weights and what depends on them alone are left out: a runtime that plans well needs about this besides the
    weights, one that fuses needs less. Keys: peak_bytes, at (the operator's name), total_bytes (all values together);
    unknown (values whose size nobody can say before running; with any of them the rest is null).
    """
    constant = _constants(proto.graph)
    sizes = {name: facts.num_bytes for name, facts in tensors_of(proto, input_shape).items()}
    nodes = [node for node in proto.graph.node if not constant.issuperset(node.output)]
    made = [value.name for value in proto.graph.input if value.name not in constant]
    made += [name for node in nodes for name in node.output if name]
    unknown = [name for name in made if sizes.get(name) is None]
    if unknown:
        return {"peak_bytes": None, "at": None, "total_bytes": None, "unknown": unknown}
    known = {name: size for name in made if (size := sizes[name]) is not None}
    peak, at = _peak(nodes, known, proto.graph)
    return {"peak_bytes": peak, "at": at, "total_bytes": sum(known.values()), "unknown": []}


def _peak(nodes: Sequence[onnx.NodeProto], sizes: dict[str, int], graph: onnx.GraphProto) -> tuple[int, str]:
    last = {name: number for number, node in enumerate(nodes) for name in _reads(node)}
    last |= {value.name: len(nodes) for value in graph.output}
    live = sum(sizes[value.name] for value in graph.input if value.name in sizes)
    peak, at = live, ""
    for number, node in enumerate(nodes):
        live += sum(sizes[name] for name in node.output if name)
        if live > peak:
            peak, at = live, node.name or node.output[0]
        finished = {name for name in (*_reads(node), *node.output) if name in sizes}
        live -= sum(sizes[name] for name in finished if last.get(name, number) == number)
    return peak, at


def _reads(node: onnx.NodeProto) -> set[str]:
    """What an operator reads, what its branches read of the graph around them included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names |= {name for inner in attribute.g.node for name in _reads(inner)}
    return names


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Weights, and what is computed from them alone: known before any image comes."""
    found = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:  # in an order in which what is read was made before
        if found.issuperset(_reads(node)):
            found.update(node.output)
    return found
