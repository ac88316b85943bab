"""A TensorRT that is not there: the names of one release, an engine that computes its ONNX file with ONNX Runtime.

`api("10.3")` gives a module with just the classes, flags and methods of that release that we use: what a release lacks
is lacking here (`_LACKING`), and what it wants is demanded (8.x: EXPLICIT_BATCH). Memory and streams are those of
`fake_cuda`: inputs are read and outputs written when the stream is synchronised, not before.

`touched` holds each (class, name) that was asked of any fake, there or not: tests hold it against NVIDIA's bindings.
"""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import types
from dataclasses import dataclass, field
from typing import Any

from . import fake_cuda

VERSIONS = {
    "8.5": "8.5.2.2",
    "8.6": "8.6.1",
    "10.3": "10.3.0",
    "10.16": "10.16.1.11",
    "11.4": "11.4.0.106",
    "rtx": "1.7.1.116",
}

_NEW_IN_10 = "NetworkDefinitionCreationFlag.STRONGLY_TYPED ParserError.node_name ParserError.node_operator"
_NEW_IN_10 += " ICudaEngine.device_memory_size_v2"
_GONE_IN_11 = "NetworkDefinitionCreationFlag.EXPLICIT_BATCH BuilderFlag.FP16 BuilderFlag.INT8"
_GONE_IN_11 += " ICudaEngine.device_memory_size"
_RTX_ALONE = "IBuilderConfig.set_compute_capability IBuilderConfig.num_compute_capabilities ComputeCapability"

_LACKING = {
    "8.5": f"OnnxParserFlag OnnxParser.set_flag {_NEW_IN_10} {_RTX_ALONE}",
    "8.6": f"{_NEW_IN_10} {_RTX_ALONE}",
    "10.3": _RTX_ALONE,
    "10.16": _RTX_ALONE,
    "11.4": f"{_GONE_IN_11} {_RTX_ALONE}",
    "rtx": _GONE_IN_11,
}

touched: set[tuple[str, str]] = set()

MAGIC = b"fake engine\n"


@dataclass(frozen=True)
class Knobs:
    """How a fake may misbehave."""

    strong_types_fail: bool = False
    """A build in strong types fails, as it may in early 10.x."""
    memory_bytes: int = 1 << 62
    """A build that may take more workspace runs out of memory; one that was told no limit takes all."""
    kills: bool = False
    """Memory that runs out ends the process, as the kernel's killer does."""
    dla_cores: int = 0
    crash: str = ""
    """`build` or `deserialize` ends the process as a fault in the library would."""
    context_fails: bool = False
    """No memory for an execution context."""


@dataclass
class Release:
    """One release: what it has and how it behaves."""

    level: str
    knobs: Knobs
    lacking: frozenset[str]
    classes: dict[str, Any] = field(default_factory=dict)
    has_plugins: bool = False
    """Whether they were registered."""

    def register_plugins(self, log: Any, namespace: str) -> bool:
        """What the module calls `init_libnvinfer_plugins`."""
        self.has_plugins = True
        return True

    @property
    def version(self) -> str:
        """Its full version."""
        return VERSIONS[self.level]


def api(level: str, **knobs: Any) -> Any:
    """Give the module of a release, a key of `VERSIONS`; see `Knobs`."""
    from . import fake_tensorrt_build, fake_tensorrt_engine

    release = Release(level, Knobs(**knobs), frozenset(_LACKING[level].split()))
    module: Any = _Module("tensorrt_rtx" if level == "rtx" else "tensorrt")
    module.__version__ = release.version
    module.init_libnvinfer_plugins = release.register_plugins
    kinds = _flags("NetworkDefinitionCreationFlag", EXPLICIT_BATCH=0, STRONGLY_TYPED=int(level.startswith("10")))
    for base in (kinds, *_ENUMERATIONS, *fake_tensorrt_build.CLASSES, *fake_tensorrt_engine.CLASSES):
        if base.__name__ not in release.lacking:
            release.classes[base.__name__] = _of_release(base, release)
            setattr(module, base.__name__, release.classes[base.__name__])
    return module


def _of_release(base: Any, release: Release) -> Any:
    """Copy a class without what the release lacks."""
    names = {name: value for name, value in vars(base).items() if f"{base.__name__}.{name}" not in release.lacking}
    for gone in ("__dict__", "__weakref__"):
        names.pop(gone, None)
    return _Names(base.__name__, base.__bases__, {**names, "_release": release})


class _Names(type):
    """Notes every name that is asked of a class itself (flags, `hasattr`)."""

    def __getattribute__(cls, name: str) -> Any:
        _note(type.__getattribute__(cls, "__name__"), name)
        return type.__getattribute__(cls, name)


class Fake(metaclass=_Names):
    """Notes every name that is asked of an object or set on it; names of the fake's own start with `_`."""

    _release: Release

    def __getattribute__(self, name: str) -> Any:
        _note(type.__getattribute__(type(self), "__name__"), name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _note(type.__getattribute__(type(self), "__name__"), name)
        if "_release" in vars(type(self)) and not hasattr(type(self), name) and not name.startswith("_"):
            raise AttributeError(f"{name}: the real class has no such attribute to set")
        object.__setattr__(self, name, value)

    def _error(self, text: str) -> None:
        self._log.log(self._release.classes["ILogger"].ERROR, text)


class _Module(types.ModuleType):
    def __getattribute__(self, name: str) -> Any:
        _note("", name)
        return types.ModuleType.__getattribute__(self, name)


def _note(owner: str, name: str) -> None:
    if not name.startswith("_") and owner not in ("Log", "Fake"):
        touched.add((owner, name))


def _flags(name: str, **members: int) -> Any:
    """An enumeration like pybind11's: its members are class attributes that convert to int and have a name."""
    make: Any = enum.IntEnum
    return _Names(name, (), dict(make("Members", members).__members__))


_ENUMERATIONS = [
    _flags("OnnxParserFlag", NATIVE_INSTANCENORM=0),
    _flags("BuilderFlag", FP16=0, INT8=1, GPU_FALLBACK=3, TF32=7),
    _flags("MemoryPoolType", WORKSPACE=0),
    _flags("ProfilingVerbosity", DETAILED=2),
    _flags("LayerInformationFormat", JSON=1),
    _flags("DeviceType", GPU=0, DLA=1),
    _flags("TensorIOMode", NONE=0, INPUT=1, OUTPUT=2),
    _flags("DataType", FLOAT=0, HALF=1, INT32=3),
    _flags("ComputeCapability", SM75=75, SM80=80, SM86=86, SM89=89, SM120=120, SM121=121),
]


def session(onnx: bytes) -> Any:
    """Open the network in ONNX Runtime: what the fake computes with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def crash() -> None:
    """End the process as a fault in a library does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def kill() -> None:
    """End the process as the kernel does where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def move(target: int, source: int, device: int, num_bytes: int) -> None:
    """Copy as a kernel does: outside of what is allocated it faults."""
    if not fake_cuda.is_allocated(device, num_bytes):
        raise MemoryError(f"illegal memory access at {device:#x}")
    ctypes.memmove(target, source, num_bytes)
