"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AgentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .runtimes import Loading

_MODES = {"default": "0", "precise": "1"}
"""What `session.x64quantprecision` is."""


class OnnxRuntime:
    """An `InferenceSession` behind the `Runtime` protocol."""

    def __init__(self, session: Any, input_name: str, output_names: list[str], facts: dict[str, Any]) -> None:
        self._run = session.run
        self._input = input_name
        self._outputs = output_names
        self._facts = facts

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the logits (N,K) of preprocessed `images` (N,C,H,W)."""
        logits: NDArray[np.float32] = self._run(self._outputs, {self._input: images})[0]
        return logits

    def trace(self, images: NDArray[np.float32]) -> dict[str, int]:
        """It has no parts: memory is the host's, and the call is all there is."""
        del images
        return {}

    def cross_check(self, batch: int) -> None:
        """No tool of the board's times it: `bench/measurement.py` holds our clock against a bare loop."""

    def close(self) -> None:
        """A session's memory goes with the session."""

    def describe(self) -> dict[str, Any]:
        """Name the runtime and what it runs on."""
        return self._facts


class OnnxFeeds(OnnxRuntime):
    """The same for any number of inputs and outputs, of any type."""

    def infer(self, feed: Any) -> Any:
        """Give every output of `feed`, a dict of arrays by input."""
        return self._run(self._outputs, feed)


def load(loading: Loading) -> OnnxRuntime:
    """Open the file in a session on the CPU; AgentError E_NO_RUNTIME, E_LOAD, E_OPTION or E_REQUEST."""
    if loading.options:
        raise AgentError("E_OPTION", f"onnxruntime has no options, but the device sets {sorted(loading.options)}")
    if loading.mode not in _MODES:
        raise AgentError("E_REQUEST", f"onnxruntime has no mode {loading.mode}")
    names = loading.input_name, loading.output_name
    return _load(loading.path, *names, loading.threads, _MODES[loading.mode])


def load_feeds(path: Path, output_names: list[str], threads: int) -> OnnxFeeds:
    """Open the file for feeds; AgentError E_NO_RUNTIME or E_LOAD."""
    session, facts = _opened(path, threads, _MODES["default"])
    return OnnxFeeds(session, "", output_names, facts)


def load_precise(path: Path, input_name: str, output_name: str, threads: int) -> OnnxRuntime:
    """The same with int8 products summed exactly.

    On x86 without VNNI, ONNX Runtime's default adds pairs of them in 16 bits, which saturate: symmetric int8 answers
    wrongly there, and faster. On other processors the two modes give the same numbers.
    """
    return _load(path, input_name, output_name, threads, _MODES["precise"])


def version(options: dict[str, Any]) -> str | None:
    """The version installed here, None where there is none."""
    del options
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
    session, facts = _opened(path, threads, precise)
    return OnnxRuntime(session, input_name, [output_name], facts)


def _opened(path: Path, threads: int, precise: str) -> tuple[Any, dict[str, Any]]:
    onnxruntime = _library()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", precise)
    threads_before, begin = _num_threads(), time.perf_counter()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise AgentError("E_LOAD", f"{path}: onnxruntime {onnxruntime.__version__}: {error}") from None
    deserialised_ms = (time.perf_counter() - begin) * 1e3
    facts = {
        "name": "onnxruntime",
        "version": onnxruntime.__version__,
        "providers": session.get_providers(),
        "x64quantprecision": precise,
        "threads": _threads_used(threads, threads_before, _num_threads()),
        "cold_ms": {"build": None, "deserialise": deserialised_ms},
    }
    return session, facts


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
