"""What an engine is made of: its fused layers, counted by kind and by the type they compute in.

Two sources say the same: the verbose log of a TensorRT-RTX build (no GPU needed) and an engine's own inspector (JSON).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    Json = dict[str, Any]

_KIND = re.compile(r"LayerType: (\w+)")
_INPUTS = re.compile(r"Inputs: \[(.*?)\], (?:Constants|Outputs): \[")
_OUTPUTS = re.compile(r"Outputs: \[(.*?)\], TacticName")
_DATATYPE = re.compile(r"Datatype: (\w+)")

_TYPES = {"float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "int8": "int8", "bfloat16": "bf16"}
"""NVIDIA's names in both sources -> ours; what is not here keeps its own name."""


def layers_from_log(message: str) -> Json | None:
    """Count the layers of the message that starts `Layers:`; None where there is none."""
    lines = [line for line in message.splitlines() if line.startswith("Name: ")]
    rows = ((_first(_KIND, line), _DATATYPE.findall(_first(_INPUTS, line) or _first(_OUTPUTS, line))) for line in lines)
    return _counted(rows) if lines else None


def layers_from_inspector(text: str) -> Json | None:
    """Count the layers of an `EngineInspector`'s JSON; None where it says no types (built without detail), or is none.

    TensorRT 8.6 and 10.0 write control characters into its strings (NVIDIA/TensorRT issue 2779).
    """
    try:
        layers = json.loads(text, strict=False).get("Layers", [])
    except ValueError:
        return None
    if not layers or isinstance(layers[0], str):
        return None
    return _counted((layer.get("LayerType", "unknown"), _formats(layer)) for layer in layers)


def _counted(rows: Iterable[tuple[str, list[str]]]) -> Json:
    """`by_kind`: layers of each kind. `by_type`: layers of each input type, "none" for those without tensors."""
    kinds: Counter[str] = Counter()
    types: Counter[str] = Counter()
    num_layers = 0
    by_kind_and_type: dict[str, Counter[str]] = {}
    for kind, datatypes in rows:
        name = datatypes[0].lower() if datatypes else "none"
        ours = _TYPES.get(name, name)
        kinds[kind] += 1
        types[ours] += 1
        by_kind_and_type.setdefault(kind, Counter())[ours] += 1
        num_layers += 1
    both = {kind: dict(sorted(of.items())) for kind, of in sorted(by_kind_and_type.items())}
    return {
        "num": num_layers,
        "by_kind": dict(sorted(kinds.items())),
        "by_type": dict(sorted(types.items())),
        "of": both,
    }


def _formats(layer: Json) -> list[str]:
    """The types of a layer's inputs, or of its outputs where it has none: `Format/Datatype` starts with them."""
    tensors = layer.get("Inputs") or layer.get("Outputs") or []
    texts = [str(tensor.get("Format/Datatype", tensor.get("Datatype", ""))) for tensor in tensors]
    return [found[0] for found in map(_INSPECTOR_TYPE.findall, texts) if found]


_INSPECTOR_TYPE = re.compile(r"(?i)\b(fp32|fp16|half|float|int8|int32|int64|bfloat16|bool)\b")


def _first(pattern: re.Pattern[str], line: str) -> str:
    found = pattern.search(line)
    return found[1] if found else ""
