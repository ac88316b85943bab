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


DEFAULT = "default"


class Runtime(Protocol):
    """A loaded file, ready to infer."""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the logits (N,K) in host memory of preprocessed `images` (N,C,H,W) in host memory."""

    def trace(self, images: NDArray[np.float32]) -> dict[str, int]:
        """Infer a batch once and give the call's parts in ns, by name; empty where the runtime has none."""

    def cross_check(self, batch: int) -> dict[str, Any] | None:
        """What another tool says of the same: `gpu_p50_ms`, `n`, `program`, `switches`, or `failed`; None: no tool."""

    def describe(self) -> dict[str, Any]:
        """Name the runtime: `name`, `version`, `providers`, `threads` (really used; None where it cannot be known),
        `cold_ms` with what `build` and `deserialise` took (None where there is no such step)."""


@dataclass(frozen=True)
class Loading:
    """What is to be loaded."""

    path: Path
    input_name: str
    output_name: str
    threads: int
    """0 leaves their number to the runtime."""
    mode: str = DEFAULT
    """The runtime as it comes; "precise", of ONNX Runtime alone, sums int8 products exactly."""
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


def version(name: str, options: dict[str, Any]) -> str | None:
    """Give the version of a runtime that is installed here, which chooses the file; None where that is not known."""
    return _VERSIONS[name](options) if name in _VERSIONS else None


def _load_onnx_runtime(loading: Loading) -> Runtime:
    if loading.options:
        raise AgentError("E_OPTION", f"onnxruntime has no options, but the device sets {sorted(loading.options)}")
    opened = _ONNX_RUNTIME_MODES.get(loading.mode)
    if opened is None:
        raise AgentError("E_REQUEST", f"onnxruntime has no mode {loading.mode}")
    return opened(loading.path, loading.input_name, loading.output_name, loading.threads)


def _load_tensorrt(loading: Loading) -> Runtime:
    if loading.mode != DEFAULT:
        raise AgentError("E_REQUEST", f"tensorrt has no mode {loading.mode}")
    return tensorrt_runtime.load(loading)


_ONNX_RUNTIME_MODES = {DEFAULT: onnx_runtime.load, "precise": onnx_runtime.load_precise}
_LOADERS: dict[str, Callable[[Loading], Runtime]] = {"onnxruntime": _load_onnx_runtime, "tensorrt": _load_tensorrt}
_VERSIONS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "onnxruntime": lambda _: onnx_runtime.version(),
    "tensorrt": lambda options: tensorrt_runtime.version(options.get("library")),
}
