"""What a runtime must do, and which there are. One file a runtime; one line here adds one.

Its file is imported only when it is used: whoever asks what is here may have no numpy.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .errors import AgentError

if TYPE_CHECKING:
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

    def close(self) -> None:
        """Give back what is not given back with the object itself; nothing is inferred after it."""

    def describe(self) -> dict[str, Any]:
        """Name the runtime: `name` (it begins with that in `RUNTIMES`), `version`, `providers`, `threads` (really used;
        None where it cannot be known), `cold_ms` with what `build` and `deserialise` took (None: no such step), and
        `children`, where other processes do the building: that is no part of a cold load."""


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
    beside: tuple[Path, ...] = ()
    """Files that hold weights of `path`: it may stay the same while they change."""
    timed: bool = True
    """Whether its latency will be told: only then an engine that was chosen while clocks moved is built anew."""


class Kind(NamedTuple):
    """A runtime that may be there."""

    module: str
    """The file beside this one, with its `load(loading)` and, where it reads its own files, `version(options)`."""
    reads: str
    """Whose files of a bundle it takes: its own name, or that of another whose newest files it reads as they are."""


RUNTIMES = {
    "tensorrt": Kind("tensorrt_runtime", reads="tensorrt"),
    "onnxruntime": Kind("onnx_runtime", reads="onnxruntime"),
}
"""By the name of the Python package that must be there; where the user leaves the choice, the first that is."""


def load(name: str, loading: Loading) -> Runtime:
    """Load the file into the runtime called `name`. AgentError where it cannot be loaded."""
    if name not in RUNTIMES:
        raise AgentError("E_RUNTIME", "unknown runtime {}; known: {}".format(name, ", ".join(sorted(RUNTIMES))))
    runtime: Runtime = _module(name).load(loading)
    return runtime


def version(name: str, options: dict[str, Any]) -> str | None:
    """Give the version that chooses between a bundle's files; None where it is not known, or they are another's."""
    if name not in RUNTIMES or files_of(name) != name:
        return None
    found: str | None = _module(name).version(options)
    return found


def files_of(name: str) -> str:
    """Whose files of a bundle the runtime takes: see `Kind.reads`."""
    return RUNTIMES[name].reads if name in RUNTIMES else name


def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{RUNTIMES[name].module}")
