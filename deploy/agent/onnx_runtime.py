"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AgentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OnnxRuntime:
    """An `InferenceSession` behind the `Runtime` protocol."""

    def __init__(self, session: Any, input_name: str, output_name: str, facts: dict[str, Any]) -> None:
        self._run = session.run
        self._input = input_name
        self._outputs = [output_name]
        self._facts = facts

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the logits (N,K) of preprocessed `images` (N,C,H,W)."""
        logits: NDArray[np.float32] = self._run(self._outputs, {self._input: images})[0]
        return logits

    def describe(self) -> dict[str, Any]:
        """Name the runtime and what it runs on."""
        return self._facts


def load(path: Path, input_name: str, output_name: str, threads: int) -> OnnxRuntime:
    """Open the file in a session on the CPU; AgentError E_NO_RUNTIME or E_LOAD."""
    return _load(path, input_name, output_name, threads, "0")


def load_precise(path: Path, input_name: str, output_name: str, threads: int) -> OnnxRuntime:
    """The same with int8 products summed exactly.

    On x86 without VNNI, ONNX Runtime's default adds pairs of them in 16 bits, which saturate: symmetric int8 answers
    wrongly there, and faster. On other processors the two modes give the same numbers.
    """
    return _load(path, input_name, output_name, threads, "1")


def version() -> str | None:
    """The version installed here, None where there is none."""
    try:
        return str(_library().__version__)
    except AgentError:
        return None


def _library() -> Any:
    # From 1.32 on it keeps a device's number and a data base in ~/.cache/Microsoft, and reports over the network.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise AgentError("E_NO_RUNTIME", f"{error}: install onnxruntime on the device") from None
    return onnxruntime


def _load(path: Path, input_name: str, output_name: str, threads: int, precise: str) -> OnnxRuntime:
    onnxruntime = _library()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", precise)
    threads_before = _num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise AgentError("E_LOAD", f"{path}: onnxruntime {onnxruntime.__version__}: {error}") from None
    facts = {
        "name": "onnxruntime",
        "version": onnxruntime.__version__,
        "providers": session.get_providers(),
        "x64quantprecision": precise,
        "threads": _threads_used(threads, threads_before, _num_threads()),
    }
    return OnnxRuntime(session, input_name, output_name, facts)


def _threads_used(asked: int, before: int | None, after: int | None) -> int | None:
    """Count the session's threads: those its pool started, and the caller, who works too.

    ONNX Runtime does not tell the number its default (0) came to, so it is counted where Linux lets us.
    """
    if before is None or after is None:
        return asked or None
    return after - before + 1


def _num_threads() -> int | None:
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return None
