"""ONNX file -> engine, on whichever TensorRT is there.

The file says which precision is computed where. Strongly typed networks keep to it; TensorRT 8 has none, so there the
flags FP16 and INT8 allow what the file wants (`legacy` files), and 10.x falls back to them where it refuses its own
strong types. What was done is in the facts, never silent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .engine_layers import layers_from_log
from .errors import AgentError
from .tensorrt_api import failure, made

if TYPE_CHECKING:
    from .tensorrt_api import Api

    Json = dict[str, Any]

BUILDER = 1
"""Raised where the same file and options make another engine: older cached engines are then built anew."""

_FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}
"""What a weakly typed build allows: an int8 network's remainder may be fp16."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build."""

    precision: str
    """fp32, fp16 or int8: what the file was exported as."""
    batch: int = 1
    """The engine is tuned for this batch, and takes 1 to this many images at a time."""
    workspace_bytes: int | None = None
    """The most scratch memory a layer may take; None leaves TensorRT's default: all of the device's memory."""
    use_dla: bool = False
    """Run on the deep learning accelerator of a Jetson (Xavier, Orin), layers it cannot run on the GPU. **Never run by
    us**: written from NVIDIA's documentation."""
    dla_core: int = 0
    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for ("8.6"); TensorRT-RTX alone can. Empty: this machine's."""


class Built(NamedTuple):
    """A serialised engine, and how it came about."""

    plan: bytes
    facts: Json


def build_engine(api: Api, onnx_path: str, options: BuildOptions) -> Built:
    """Parse and build.

    AgentError: E_OPTION (impossible options), E_PARSE (names node and operator), E_SHAPE (a dynamic dimension other
    than the batch), E_OUT_OF_MEMORY, E_BUILD.
    """
    _check_options(api, options)
    begin = time.perf_counter()
    strong = api.has_strong_types and not (options.use_dla and api.has_type_flags)
    fallback = None
    try:
        plan, facts = _built(api, onnx_path, options, strong)
    except AgentError as error:
        # NVIDIA calls strong types complete from 10.12 on; 10.x before has both ways, and the older one is tried.
        if error.code != "E_BUILD" or not (strong and api.has_type_flags):
            raise
        strong, fallback = False, error.message
        plan, facts = _built(api, onnx_path, options, strong)
    return Built(
        plan,
        {
            "tensorrt": api.describe(),
            "typing": "strong" if strong else "weak",
            "fallback": fallback,
            **facts,
            "build_seconds": time.perf_counter() - begin,
            "engine_bytes": len(plan),
            "layer_types": layers_from_log(api.log.layers),
        },
    )


def _check_options(api: Api, options: BuildOptions) -> None:
    if options.precision not in _FLAGS:
        known = ", ".join(_FLAGS)
        raise AgentError("E_OPTION", f"unknown precision {options.precision}: expected one of {known}")
    if options.batch < 1:
        raise AgentError("E_OPTION", f"batch {options.batch}: expected 1 or more")
    if options.use_dla and options.precision == "fp32":
        raise AgentError("E_OPTION", "a DLA computes in fp16 or int8 only: take another precision, or use_dla = false")
    if options.compute_capabilities and not api.has_target:
        raise AgentError("E_OPTION", f"{api.library} builds for this machine's GPU only: name no compute capabilities")


def _built(api: Api, onnx_path: str, options: BuildOptions, strong: bool) -> tuple[bytes, Json]:
    trt = api.trt
    builder = made(api, "no builder (is a GPU there?)", lambda: trt.Builder(api.log))
    network, parser = _network(api, builder, onnx_path, strong)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers can be listed; costs no time at run time
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: fp32 would have 10 bits of mantissa
    flags = () if strong else _FLAGS[options.precision]
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    dla = _use_dla(api, builder, network, config, options.dla_core) if options.use_dla else None
    _target(api, config, options.compute_capabilities)
    inputs = _add_profile(api, builder, network, config, options)
    api.log.layers = ""
    plan = made(api, "build failed", lambda: builder.build_serialized_network(network, config), "E_BUILD")
    del parser  # it owns the weights: not before the build
    warnings = sorted(set(api.log.warnings))[:20]
    return bytes(plan), {"flags": list(flags), "tf32": False, "dla": dla, "inputs": inputs, "warnings": warnings}


def _network(api: Api, builder: Any, onnx_path: str, strong: bool) -> tuple[Any, Any]:
    trt, flags = api.trt, 0
    kinds = trt.NetworkDefinitionCreationFlag
    if strong:
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    elif hasattr(kinds, "EXPLICIT_BATCH"):  # 8.x would else leave the batch out of every shape
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    network = made(api, "no network", lambda: builder.create_network(flags))
    api.log.errors.clear()
    parser = trt.OnnxParser(network, api.log)
    if hasattr(trt, "OnnxParserFlag"):  # 8.6, which else takes a plugin; from 10.0 on it is set
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if not parser.parse_from_file(onnx_path):
        raise _parse_error(api, parser, onnx_path)
    return network, parser


def _parse_error(api: Api, parser: Any, onnx_path: str) -> AgentError:
    if parser.num_errors == 0:
        return failure(api, "E_PARSE", f"{onnx_path}: parse failed", "it gave no reason")
    refusal = parser.get_error(0)
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    # 8.x has no names of nodes, only their index
    named = hasattr(refusal, "node_name") and refusal.node_name()
    node = f"{refusal.node_operator()} node {named}" if named else f"node {refusal.node()}"
    return AgentError("E_PARSE", f"{onnx_path}: {api.library} {api.version} refuses {node}: {refusal.desc()}{more}")


def _use_dla(api: Api, builder: Any, network: Any, config: Any, core: int) -> Json:
    trt = api.trt
    if core >= builder.num_DLA_cores:
        message = f"DLA core {core}: this device has {builder.num_DLA_cores}: use_dla = false"
        raise AgentError("E_OPTION", message)
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    on_gpu = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    return {"core": core, "num_layers": len(layers), "on_gpu": on_gpu}


def _target(api: Api, config: Any, capabilities: tuple[str, ...]) -> None:
    if not capabilities:
        return
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = "SM" + capability.replace(".", "")
        if not hasattr(api.trt.ComputeCapability, name):
            raise AgentError(
                "E_OPTION", f"{api.library} {api.version} does not build for compute capability {capability}"
            )
        config.set_compute_capability(getattr(api.trt.ComputeCapability, name), index)


def _add_profile(api: Api, builder: Any, network: Any, config: Any, options: BuildOptions) -> Json:
    """Fix each input's batch: 1 to `batch`, tuned for `batch`; a DLA takes exactly `batch`."""
    profile = builder.create_optimization_profile()
    shapes: Json = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = list(tensor.shape)
        if -1 in shape[1:]:
            message = f"input {tensor.name} has the shape {shape}: only its batch may be dynamic: export it so"
            raise AgentError("E_SHAPE", message)
        if shape[0] == -1:
            smallest = options.batch if options.use_dla else 1
            limits = [(size, *shape[1:]) for size in (smallest, options.batch, options.batch)]
            profile.set_shape(tensor.name, *limits)
            shapes[tensor.name] = [list(limit) for limit in limits]
        elif shape[0] != options.batch:
            message = f"input {tensor.name} takes a batch of {shape[0]} only, not {options.batch}: export it dynamic"
            raise AgentError("E_SHAPE", message)
        else:
            shapes[tensor.name] = [shape] * 3
    if config.add_optimization_profile(profile) < 0:
        raise failure(api, "E_SHAPE", "the batch's limits were refused", f"{shapes}")
    return shapes
