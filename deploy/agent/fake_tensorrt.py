"""A TensorRT that is not there: the names of one release, an engine that computes its ONNX file with ONNX Runtime.

`api("10.3")` gives a module with just the classes, flags and methods of that release that we use: what a release lacks
is lacking here (`_LACKING`), and what it wants is demanded (8.x: EXPLICIT_BATCH). Memory and streams are those of
`fake_cuda`: inputs are read and outputs written when the stream is synchronised, not before.

`touched` holds each (class, name) that was asked of any fake, there or not: tests hold it against NVIDIA's bindings.
"""

from __future__ import annotations

import ctypes
import enum
import json
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
    "8.5": f"{_NEW_IN_10} {_RTX_ALONE}",
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
    """A build that may take more workspace runs out of memory."""
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

    @property
    def version(self) -> str:
        """Its full version."""
        return VERSIONS[self.level]


def api(level: str, **knobs: Any) -> Any:
    """Give the module of a release, a key of `VERSIONS`; see `Knobs`."""
    from . import fake_tensorrt_engine

    release = Release(level, Knobs(**knobs), frozenset(_LACKING[level].split()))
    module: Any = _Module("tensorrt_rtx" if level == "rtx" else "tensorrt")
    module.__version__ = release.version
    kinds = _flags("NetworkDefinitionCreationFlag", EXPLICIT_BATCH=0, STRONGLY_TYPED=int(level.startswith("10")))
    for base in (kinds, *_ENUMERATIONS, *_CLASSES, *fake_tensorrt_engine.CLASSES):
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
    _flags("BuilderFlag", FP16=0, INT8=1, GPU_FALLBACK=3, TF32=7),
    _flags("MemoryPoolType", WORKSPACE=0),
    _flags("ProfilingVerbosity", DETAILED=2),
    _flags("LayerInformationFormat", JSON=1),
    _flags("DeviceType", GPU=0, DLA=1),
    _flags("TensorIOMode", NONE=0, INPUT=1, OUTPUT=2),
    _flags("DataType", FLOAT=0, HALF=1, INT32=3),
    _flags("ComputeCapability", SM75=75, SM80=80, SM86=86, SM89=89, SM120=120, SM121=121),
]


class ILogger(Fake):  # noqa: D101 (NVIDIA's classes are NVIDIA's to explain, here and below)
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Any, message: str) -> None:  # noqa: D102
        raise NotImplementedError


class IOptimizationProfile(Fake):  # noqa: D101
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, smallest: Any, tuned: Any, largest: Any) -> None:  # noqa: D102
        self._shapes[name] = [list(shape) for shape in (smallest, tuned, largest)]


class ITensor(Fake):  # noqa: D101
    name = ""
    shape: Any = ()

    def __init__(self, name: str, sizes: Any) -> None:
        self.name, self.shape = name, tuple(size if isinstance(size, int) else -1 for size in sizes)


class ILayer(Fake):  # noqa: D101
    name = ""

    def __init__(self, name: str) -> None:
        self.name = name


class INetworkDefinition(Fake):  # noqa: D101
    num_inputs, num_layers = 0, 2

    def __init__(self, strong: bool) -> None:
        self._strong, self._onnx = strong, b""
        self._inputs: Any = []

    def get_input(self, index: int) -> Any:  # noqa: D102
        return self._release.classes["ITensor"](self._inputs[index].name, self._inputs[index].shape)

    def get_layer(self, index: int) -> Any:  # noqa: D102
        return self._release.classes["ILayer"](("convolution", "reduction")[index])


class ParserError(Fake):  # noqa: D101
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:  # noqa: D102
        return self._text

    def node(self) -> int:  # noqa: D102
        return 7

    def node_name(self) -> str:  # noqa: D102
        return "odd_one"

    def node_operator(self) -> str:  # noqa: D102
        return "Odd"


class OnnxParser(Fake):  # noqa: D101
    num_errors = 0

    def __init__(self, network: Any, log: Any) -> None:
        self._network = network
        self._errors: list[Any] = []

    def parse_from_file(self, path: str) -> bool:  # noqa: D102
        try:
            with open(path, "rb") as file:  # noqa: PTH123 (a path's text, as the real one)
                self._network._onnx = file.read()
            self._network._inputs = session(self._network._onnx).get_inputs()
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            self._errors = [self._release.classes["ParserError"](str(error))]
            self.num_errors = 1
            return False
        self._network.num_inputs = len(self._network._inputs)
        return True

    def get_error(self, index: int) -> Any:  # noqa: D102
        return self._errors[index]


class IBuilderConfig(Fake):  # noqa: D101
    profiling_verbosity = default_device_type = DLA_core = num_compute_capabilities = 0

    def __init__(self) -> None:
        self._flags, self._workspace = {"TF32"}, 0
        self._profiles: list[Any] = []
        self._targets: dict[int, str] = {}

    def set_flag(self, flag: Any) -> None:  # noqa: D102
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:  # noqa: D102
        self._flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, num_bytes: int) -> None:  # noqa: D102
        self._workspace = num_bytes

    def add_optimization_profile(self, profile: Any) -> int:  # noqa: D102
        smallest_first = all(low[0] <= tuned[0] <= high[0] for low, tuned, high in profile._shapes.values())
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1 if smallest_first else -1

    def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: D102, N802 (NVIDIA's name)
        return bool(layer.name == "convolution")

    def set_compute_capability(self, capability: Any, index: int) -> bool:  # noqa: D102
        self._targets[index] = capability.name
        return index < self.num_compute_capabilities


class Builder(Fake):  # noqa: D101
    num_DLA_cores = 0  # noqa: N815 (NVIDIA's name)

    def __init__(self, log: Any) -> None:
        self._log = log
        self.num_DLA_cores = self._release.knobs.dla_cores

    def create_network(self, flags: int) -> Any:  # noqa: D102
        kinds = self._release.classes["NetworkDefinitionCreationFlag"]
        known = {name: 1 << int(value) for name, value in vars(kinds).items() if isinstance(value, int)}
        if flags & ~sum(known.values()):
            self._error(f"Error Code 3: API Usage Error: flags {flags} are not those of {sorted(known)}")
            return None
        if self._release.level.startswith("8") and not flags & known["EXPLICIT_BATCH"]:
            self._error("a network without EXPLICIT_BATCH has no batch in its shapes")
            return None
        always = self._release.level in ("11.4", "rtx")
        return self._release.classes["INetworkDefinition"](
            strong=always or bool(flags & known.get("STRONGLY_TYPED", 0))
        )

    def create_builder_config(self) -> Any:  # noqa: D102
        return self._release.classes["IBuilderConfig"]()

    def create_optimization_profile(self) -> Any:  # noqa: D102
        return self._release.classes["IOptimizationProfile"]()

    def build_serialized_network(self, network: Any, config: Any) -> Any:  # noqa: D102
        if self._release.knobs.crash == "build":
            crash()
        problem = self._problem(network, config)
        if problem is not None:
            self._error(problem)
            return None
        if self._release.level == "rtx":
            self._log.log(self._release.classes["ILogger"].VERBOSE, _LAYERS)
        header = {
            "version": self._release.version,
            "shapes": config._profiles[0],
            "flags": sorted(config._flags),
            "strong": network._strong,
            "targets": [name for _, name in sorted(config._targets.items())],
            "dla": config.DLA_core if self._is_on_dla(config) else None,
        }
        return MAGIC + json.dumps(header).encode() + b"\n" + network._onnx

    def _is_on_dla(self, config: Any) -> bool:
        return bool(config.default_device_type == self._release.classes["DeviceType"].DLA)

    def _problem(self, network: Any, config: Any) -> Any:
        if self._is_on_dla(config) and "GPU_FALLBACK" not in config._flags:
            return "Error Code 10: reduction cannot run on a DLA, and GPU_FALLBACK is not set"
        if network._strong and config._flags & {"FP16", "INT8"}:
            return "Error Code 3: API Usage Error: type flags in a strongly typed network"
        if network._strong and self._release.knobs.strong_types_fail:
            return "Error Code 10: Internal Error: could not find any implementation for node convolution"
        if config._workspace > self._release.knobs.memory_bytes:
            return "Error Code 2: OutOfMemory: requested scratch memory is too large"
        return None


_CLASSES = [ILogger, IOptimizationProfile, ITensor, ILayer, INetworkDefinition, ParserError, OnnxParser]
_CLASSES += [IBuilderConfig, Builder]

_LAYERS = (
    "Layers:\nName: a, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1], Datatype: Half, Format: f }], "
    "Outputs: [ { Name: y, Dimensions: [1], Datatype: Half, Format: f }], TacticName: t, StreamId: 0, Metadata: "
)


def session(onnx: bytes) -> Any:
    """Open the network in ONNX Runtime: what the fake computes with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def crash() -> None:
    """End the process as a fault in a library does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def move(target: int, source: int, device: int, num_bytes: int) -> None:
    """Copy as a kernel does: outside of what is allocated it faults."""
    if not fake_cuda.is_allocated(device, num_bytes):
        raise MemoryError(f"illegal memory access at {device:#x}")
    ctypes.memmove(target, source, num_bytes)
