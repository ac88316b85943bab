"""Would NVIDIA's parser and builder take this file? Asked of TensorRT-RTX, which builds engines without a GPU.

Its parser is TensorRT 11's, its builder is for desktop GPUs: `ok` means that the file can be parsed, is typed as meant
and compiles for those; an engine for a Jetson is built on the Jetson. Nothing is executed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from afpkd.errors import install
from afpkd.record import Json
from deploy.agent.child import run_in_child
from deploy.agent.errors import AgentError
from deploy.agent.tensorrt_build import BuildOptions
from deploy.onnx_checks import RTX, check_onnx, fixed_batch, not_native_on_dla

_LIBRARY = "tensorrt_rtx"
_RELEASES = ("8.6", "10.3", "11.4")
"""TensorRT of JetPack 5 and 6.0 (8.5, 8.6), of 6.1 and 6.2, and of 7.2.2 on."""

_BATCH = 8
"""The engine takes 1 to this many images, where the file leaves the batch open: that it may is part of the check."""


def build_check(onnx_path: Path, precision: str, *, capabilities: tuple[str, ...] = ("8.6", "8.9", "12.0")) -> Json:
    """Check the file, then build it for all `capabilities` (compute capabilities of GPUs) in one engine.

    `status`: "ok", "failed" (`reason`: one line with node and cause) or "not checked" (`reason`: why). `layer_types`
    counts the engine's layers by kind and by the type they read; `static` says of each TensorRT release what speaks
    against the file there, None for nothing; `dla_not_native` counts what a DLA would leave to the GPU.
    """
    found = check_onnx(onnx_path, RTX)
    report: Json = {
        "status": "failed",
        "tensorrt": None,
        "compute_capabilities": list(capabilities),
        "build_seconds": None,
        "engine_bytes": None,
        "layer_types": None,
        "reason": None,
        "static": {release: _first(onnx_path, release) for release in _RELEASES},
        "dla_not_native": not_native_on_dla(onnx_path),
    }
    if found:
        return {**report, "reason": found[0].message}
    if find_spec(_LIBRARY) is None:
        return {**report, "status": "not checked", "reason": f"{_LIBRARY} is not installed ({install('rtx')})"}
    try:
        batch = fixed_batch(onnx_path) or _BATCH
        built = _built(onnx_path, BuildOptions(precision, batch=batch, compute_capabilities=capabilities))
    except AgentError as error:
        return {**report, "reason": _reason(onnx_path, error)}
    kept = ("tensorrt", "build_seconds", "engine_bytes", "layer_types")
    return {**report, "status": "ok", **{key: built[key] for key in kept}}


def _built(onnx_path: Path, options: BuildOptions) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        request = {"library": _LIBRARY, "onnx": str(onnx_path), "options": asdict(options), "plan": f"{folder}/engine"}
        return run_in_child("build_engine", request)


def _first(onnx_path: Path, release: str) -> str | None:
    return next((finding.message for finding in check_onnx(onnx_path, release)), None)


def _reason(onnx_path: Path, error: AgentError) -> str:
    """Say what failed in our words, and what polygraphy says of the nodes, where it says more than that."""
    said = capability_report(onnx_path) if error.code == "E_PARSE" else []
    others = [line for line in said if line.split(": ")[0] not in error.message]
    own = error.message.replace(f"{onnx_path}: ", "")  # the manifest that keeps it names the file, and no folder
    return own + (f"; also {'; '.join(others)}" if others else "")


def capability_report(onnx_path: Path) -> list[str]:
    """List the nodes TensorRT-RTX cannot parse, as `polygraphy inspect capability` finds them: `operator node: reason`.

    Empty where it finds none or is not installed.
    """
    if find_spec("polygraphy") is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        command = "import sys; from polygraphy.tools import main; sys.exit(main())"
        subprocess.run(
            [sys.executable, "-c", command, "inspect", "capability", str(onnx_path.resolve()), "--output", folder],
            env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
            cwd=folder,
            capture_output=True,
            check=False,
        )
        results = Path(folder) / "results.txt"
        return _rows(results.read_text(encoding="utf-8")) if results.exists() else []


def _rows(table: str) -> list[str]:
    """Read polygraphy's table: `stack | operator | node | reason`, a title and a rule above it."""
    rows = [[cell.strip() for cell in line.split("|", 3)] for line in table.splitlines() if line.count("|") >= 3]
    return [f"{operator} node {node}: {reason}" for _, operator, node, reason in rows[1:]]
