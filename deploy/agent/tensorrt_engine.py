"""A serialised engine -> one that can run, and what it says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .engine_layers import layers_from_inspector
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
