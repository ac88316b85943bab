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


class Runtime(Protocol):
    """A loaded file, ready to infer."""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the logits (N,K) in host memory of preprocessed `images` (N,C,H,W) in host memory."""

    def describe(self) -> dict[str, Any]:
        """Name the runtime: `name`, `version`, `providers`, `threads` (really used; None where it cannot be known)."""


def load(name: str, path: Path, *, input_name: str, output_name: str, threads: int) -> Runtime:
    """Load the file at `path`; `threads` 0 leaves their number to the runtime. AgentError where it cannot be loaded."""
    if name not in _LOADERS:
        raise AgentError("E_RUNTIME", "unknown runtime {}; known: {}".format(name, ", ".join(sorted(_LOADERS))))
    return _LOADERS[name](path, input_name, output_name, threads)


_LOADERS: dict[str, Callable[[Path, str, str, int], Runtime]] = {"onnxruntime": onnx_runtime.load}
