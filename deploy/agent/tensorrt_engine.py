"""A serialised engine -> one that can run, and what it says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .engine_layers import layers_from_inspector
from .errors import AgentError
from .tensorrt_api import made

if TYPE_CHECKING:
    from .tensorrt_api import Api


class Opened(NamedTuple):
    """An engine, and the runtime that must live as long as it does."""

    runtime: Any
    engine: Any


def open_engine(api: Api, plan: bytes, dla_core: int | None = None) -> Opened:
    """Deserialise; E_ENGINE where it is another TensorRT's, another GPU's or no engine (it may also end the process).

    dla_core: the DLA it was built for, None for a GPU's.
    """
    runtime = made(api, "no runtime (is a GPU there?)", lambda: api.trt.Runtime(api.log))
    if dla_core is not None:
        runtime.DLA_core = dla_core
    engine = made(api, "not an engine for this device", lambda: runtime.deserialize_cuda_engine(plan), "E_ENGINE")
    return Opened(runtime, engine)


def batch_limits(engine: Any, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the smallest and the largest shape input `name` takes; the same where its batch is fixed."""
    shape = tuple(engine.get_tensor_shape(name))
    if -1 not in shape:
        return shape, shape
    smallest, _, largest = engine.get_tensor_profile_shape(name, 0)
    return tuple(smallest), tuple(largest)


def describe_engine(api: Api, engine: Any) -> dict[str, Any]:
    """Give the engine's layers by kind and type, and the device memory its execution takes, in bytes."""
    trt = api.trt
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    # int64 from 10.1 on; the older name is gone in 11
    modern = hasattr(engine, "device_memory_size_v2")
    memory_bytes = engine.device_memory_size_v2 if modern else engine.device_memory_size
    return {"layer_types": layers_from_inspector(text), "device_memory_bytes": int(memory_bytes)}


def check_names(api: Api, engine: Any, names: tuple[str, str]) -> None:
    """AgentError E_ENGINE unless the engine has one input and one output of these names."""
    found = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = [engine.get_tensor_mode(name) == api.trt.TensorIOMode.INPUT for name in found]
    expected = {names[0]: True, names[1]: False}
    if dict(zip(found, modes)) != expected:  # noqa: B905 (strict= is Python 3.10)
        raise AgentError("E_ENGINE", f"the engine's inputs and outputs are {found}: expected {list(names)}")


def numpy_type(api: Api, engine: Any, name: str) -> np.dtype[Any]:
    """What a tensor is on the host: float32 or float16; AgentError E_ENGINE for others."""
    kind = engine.get_tensor_dtype(name)
    if kind == api.trt.DataType.FLOAT:
        return np.dtype(np.float32)
    if kind == api.trt.DataType.HALF:
        return np.dtype(np.float16)
    raise AgentError("E_ENGINE", f"{name} is of type {kind}: only float32 and float16 are read and written here")
