"""What a runtime must do, and which there are. One file a runtime; one line here adds one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from . import onnx_runtime
from .errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


DEFAULT = "default"


class Runtime(Protocol):
    """A loaded file, ready to infer."""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the logits (N,K) in host memory of preprocessed `images` (N,C,H,W) in host memory."""

    def describe(self) -> dict[str, Any]:
        """Name the runtime: `name`, `version`, `providers`, `threads` (really used; None where it cannot be known)."""


def load(name: str, path: Path, *, input_name: str, output_name: str, threads: int, mode: str = DEFAULT) -> Runtime:
    """Load the file at `path`; `threads` 0 leaves their number to the runtime. AgentError where it cannot be loaded.

    mode: "default" is the runtime as it comes; "precise", of ONNX Runtime alone, sums int8 products exactly.
    """
    if name not in _LOADERS:
        raise AgentError("E_RUNTIME", "unknown runtime {}; known: {}".format(name, ", ".join(sorted(_LOADERS))))
    if mode == DEFAULT:
        return _LOADERS[name](path, input_name, output_name, threads)
    if (name, mode) not in _MODES:
        raise AgentError("E_REQUEST", f"runtime {name} has no mode {mode}")
    return _MODES[name, mode](path, input_name, output_name, threads)


def version(name: str) -> str | None:
    """Give the version of a runtime that is installed here, which chooses the file; None where that is not known."""
    return _VERSIONS[name]() if name in _VERSIONS else None


_LOADERS: dict[str, Callable[[Path, str, str, int], Runtime]] = {"onnxruntime": onnx_runtime.load}
_MODES: dict[tuple[str, str], Callable[[Path, str, str, int], Runtime]] = {
    ("onnxruntime", "precise"): onnx_runtime.load_precise
}
_VERSIONS: dict[str, Callable[[], str | None]] = {"onnxruntime": onnx_runtime.version}
