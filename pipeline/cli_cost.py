"""`afpkd cost`: what an ONNX file costs before it runs, whoever made it. No torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afpkd.errors import UserError
from afpkd.record import Json
from export.beside import files_beside

if TYPE_CHECKING:
    import onnx


def cost(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    image: Annotated[
        str | None,
        typer.Option("--input", help="Channels, height, width, as 3x224x224, where the file leaves them open."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Count an ONNX file's parameters, MACs by layer, activation memory and size; name what was not counted."""
    from export.activations import activation_memory
    from export.graph_cost import graph_cost
    from export.graph_shapes import input_shape_of

    proto = _read(model)
    shape = input_shape_of(model, proto, _sizes(image))
    found = {
        "model": str(model),
        "input": list(shape),
        "size_bytes": sum(path.stat().st_size for path in (model, *files_beside(model, proto).values())),
        **{key: value for key, value in graph_cost(proto, shape).items() if key not in ("fvcore", "torch", "agree")},
        "activations": activation_memory(proto, shape),
    }
    sys.stdout.write((json.dumps(found, indent=2) if as_json else _text(found)) + "\n")


def _read(path: Path) -> onnx.ModelProto:
    import onnx

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError("E_ONNX_FILE", f"{path}: a folder or a pipe: name an ONNX file")
    try:
        proto = onnx.load(path, load_external_data=False)  # sizes are told without the numbers
        files_beside(path, proto)
        onnx.checker.check_model(str(path))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("E_ONNX_FILE", f"{path}: {error.strerror}: name an ONNX file") from None
    except Exception as error:  # protobuf and the checker raise errors of their own
        raise UserError("E_ONNX_FILE", f"{path}: not a valid ONNX file: {str(error).splitlines()[0][:200]}") from None
    return proto


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() for part in parts):
        raise UserError("E_USAGE", f"--input {text}: channels, height and width were expected, such as 3x224x224")
    return tuple(map(int, parts))


def _text(found: Json) -> str:
    from pipeline.report.wording import si

    activations = found["activations"]
    peak = f"{si(activations['peak_bytes'], 'B')} at {activations['at']}" if activations["at"] else "not known"
    others = ", ".join(f"{number} {name}" for name, number in sorted(found["unsupported_ops"].items()))
    lines = [
        f"parameters   {found['num_params']:,}",
        f"MACs         {found['macs']:,} (FLOPs/2) for one image of {'x'.join(map(str, found['input']))}",
        f"activations  {peak} at most, one image",
        f"file         {si(found['size_bytes'], 'B')}",
        f"not counted  {others or 'nothing'}",
        "",
        *(f"{own:>15,}  {100 * own / found['macs']:>5.1f} %  {name}" for name, own in found["by_layer"].items()),
    ]
    return "\n".join(lines)
