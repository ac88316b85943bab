"""The half of the fake TensorRT that builds: network, parser, builder. See `fake_tensorrt`."""

from __future__ import annotations

import json
from typing import Any

from .fake_tensorrt import MAGIC, Fake, crash, kill, session


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
        self._flags: set[str] = set()
        if self._release.level[0] != "8":
            self._flags.add("NATIVE_INSTANCENORM")

    def set_flag(self, flag: Any) -> None:  # noqa: D102
        self._flags.add(flag.name)

    def _require_plugins(self) -> None:
        """The one operator of ours that is not native everywhere."""
        native = "NATIVE_INSTANCENORM" in self._flags or self._release.has_plugins
        if b"InstanceNormalization" in self._network._onnx and not native:
            raise ValueError("Plugin not found: InstanceNormalization_TRT")

    def parse_from_file(self, path: str) -> bool:  # noqa: D102
        try:
            with open(path, "rb") as file:  # noqa: PTH123 (a path's text, as the real one)
                self._network._onnx = file.read()
            self._require_plugins()
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
        self._flags, self._workspace = {"TF32"}, 1 << 40
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
            if self._release.knobs.kills:
                kill()
            return "Error Code 2: OutOfMemory: requested scratch memory is too large"
        return None


CLASSES = [ILogger, IOptimizationProfile, ITensor, ILayer, INetworkDefinition, ParserError, OnnxParser]
CLASSES += [IBuilderConfig, Builder]

_LAYERS = (
    "Layers:\nName: a, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1], Datatype: Half, Format: f }], "
    "Outputs: [ { Name: y, Dimensions: [1], Datatype: Half, Format: f }], TacticName: t, StreamId: 0, Metadata: "
)
