"""What a runtime must do, and which there are. One file a runtime; one line here adds one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from . import onnx_runtime, tensorrt_runtime
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


@dataclass(frozen=True)
class Loading:
    """What is to be loaded."""

    path: Path
    input_name: str
    output_name: str
    threads: int
    """0 leaves their number to the runtime."""
    precision: str = "fp32"
    """What the file was exported as."""
    batch: int = 1
    """Images a call; a runtime that builds engines tunes for it."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the device sets for its runtime: see `tensorrt_runtime.DeviceOptions`; ONNX Runtime has none."""


def load(name: str, loading: Loading) -> Runtime:
    """Load the file into the runtime called `name`. AgentError where it cannot be loaded."""
    if name not in _LOADERS:
        raise AgentError("E_RUNTIME", "unknown runtime {}; known: {}".format(name, ", ".join(sorted(_LOADERS))))
    return _LOADERS[name](loading)


def _load_onnx_runtime(loading: Loading) -> Runtime:
    if loading.options:
        raise AgentError("E_OPTION", f"onnxruntime has no options, but the device sets {sorted(loading.options)}")
    return onnx_runtime.load(loading.path, loading.input_name, loading.output_name, loading.threads)


_LOADERS: dict[str, Callable[[Loading], Runtime]] = {
    "onnxruntime": _load_onnx_runtime,
    "tensorrt": tensorrt_runtime.load,
}
