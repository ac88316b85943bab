"""ONNX's reference evaluator: numpy alone. Slow, and what the standard says a file means."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .errors import AgentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .runtimes import Loading


class ReferenceRuntime:
    """A `ReferenceEvaluator` behind the `Runtime` protocol."""

    def __init__(self, run: Any, names: tuple[str, str], facts: dict[str, Any]) -> None:
        self._run, self._input, self._output, self._facts = run, *names, facts

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the logits (N,K) of preprocessed `images` (N,C,H,W)."""
        logits: NDArray[np.float32] = self._run([self._output], {self._input: images})[0]
        return logits

    def trace(self, images: NDArray[np.float32]) -> dict[str, int]:
        """It has no parts."""
        del images
        return {}

    def cross_check(self, batch: int) -> None:
        """No other tool times it."""

    def close(self) -> None:
        """It holds nothing but memory."""

    def describe(self) -> dict[str, Any]:
        """Name the runtime and what it runs on."""
        return self._facts


def load(loading: Loading) -> ReferenceRuntime:
    """Open the file; AgentError E_OPTION, E_NO_RUNTIME or E_LOAD."""
    if loading.options:
        raise AgentError("E_OPTION", f"onnx has no options, but the device sets {sorted(loading.options)}")
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise AgentError("E_NO_RUNTIME", f"{error}: install onnx on the device") from None
    begin = time.perf_counter()
    try:
        evaluator = ReferenceEvaluator(str(loading.path))
    except Exception as error:  # what a broken file raises has no base of its own
        raise AgentError("E_LOAD", f"{loading.path}: onnx {onnx.__version__}: {error}") from None
    cold_ms = {"build": None, "deserialise": (time.perf_counter() - begin) * 1e3}
    facts = {"name": "onnx", "version": onnx.__version__, "providers": ["numpy"], "threads": 1, "cold_ms": cold_ms}
    return ReferenceRuntime(evaluator.run, (loading.input_name, loading.output_name), facts)
