"""NVIDIA's Python module: which is there, what it can do (asked, never derived from its version), what it says.

`tensorrt` 8.5 to 11 or `tensorrt_rtx` (builds without a GPU, for desktop GPUs only: no Jetson). What differs:

| | 8.5, 8.6 | 10.x | 11.x | RTX |
|---|---|---|---|---|
| EXPLICIT_BATCH flag | needed | ignored | gone | gone |
| STRONGLY_TYPED flag | not there | there | there | there |
| FP16, INT8 flags | there | deprecated | gone | gone |
| builds for | this GPU | this GPU | this GPU | the GPUs named |

The names were checked against NVIDIA's real bindings 8.6.1, 10.3.0, 10.16.1, 11.4.0 and RTX; builds ran on RTX alone;
**no engine was ever executed by us**.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARIES = ("tensorrt", "tensorrt_rtx")


class Api(NamedTuple):
    """The module and what it can do."""

    trt: Any
    log: Any
    library: str
    version: str
    has_strong_types: bool
    """Networks can be built in exactly the types their file says."""
    has_type_flags: bool
    """The builder may be allowed (not made) to use fp16 and int8: what came before strong types."""
    has_target: bool
    """The engine can be built for other GPUs than this machine's."""

    def describe(self) -> dict[str, str]:
        """Name and version, as records keep them."""
        return {"name": self.library, "version": self.version}


def open_tensorrt(library: str | None = None) -> Api:
    """Import `library` (by default the first of `LIBRARIES` that is there): E_NO_RUNTIME, E_OLD."""
    trt, name = _module(library)
    if not hasattr(trt.IExecutionContext, "execute_async_v3"):
        raise AgentError("E_OLD", f"{name} {trt.__version__} is too old: 8.5 (JetPack 5.1) is the oldest that will do")
    log = _log_of(trt)
    if hasattr(trt, "init_libnvinfer_plugins"):  # else some operators are not found: 8.5's InstanceNormalization
        trt.init_libnvinfer_plugins(log, "")
    return Api(
        trt=trt,
        log=log,
        library=name,
        version=trt.__version__,
        has_strong_types=hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
        has_type_flags=hasattr(trt.BuilderFlag, "FP16"),
        has_target=hasattr(trt.IBuilderConfig, "set_compute_capability"),
    )


def made(api: Api, what: str, make: Callable[[], Any], code: str = "E_TENSORRT") -> Any:
    """Give what `make` makes; where TensorRT gives nothing (None, or pybind's TypeError), raise what it logged."""
    api.log.errors.clear()
    try:
        result = make()
    except (TypeError, RuntimeError) as error:  # a factory that gave a null pointer
        raise failure(api, code, what, str(error)) from None
    if result is None or result is False:
        raise failure(api, code, what, "it gave no reason")
    return result


def failure(api: Api, code: str, what: str, otherwise: str) -> AgentError:
    """Make the error of a failed step from the first thing TensorRT logged: what follows it are consequences."""
    cause = next(iter(api.log.errors), otherwise)
    if any(sign in text.lower() for text in api.log.errors for sign in _OUT_OF_MEMORY):
        code, cause = (
            "E_OUT_OF_MEMORY",
            f"{cause}: end other programs, or take a smaller batch or workspace_mb (devices.toml)",
        )
    return AgentError(code, f"{api.library} {api.version}: {what}: {cause}")


_OUT_OF_MEMORY = ("out of memory", "outofmemory", "cudaerrormemoryallocation")


def _module(library: str | None) -> tuple[Any, str]:
    failures = []
    for name in LIBRARIES if library is None else (library,):
        try:
            return importlib.import_module(name), name
        except ImportError as error:
            failures.append(str(error))
    hint = "on a Jetson: apt install python3-libnvinfer, and /usr/bin/python3 as the device's python"
    raise AgentError("E_NO_RUNTIME", f"{failures[0]}: {hint}")


_LOGS: dict[str, Any] = {}
"""One log a module: while anything lives that was made with one, TensorRT says that it ignores every other."""


def _log_of(trt: Any) -> Any:
    if trt.__name__ not in _LOGS:
        _LOGS[trt.__name__] = _make_log(trt)
    return _LOGS[trt.__name__]


def _make_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc] # its base is known only at run time
        """Keeps errors and warnings, and of all that is verbose the one message that lists an engine's layers."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(" ".join(message.split()))
            elif message.startswith("Layers:"):
                self.layers = message

    return Log()
