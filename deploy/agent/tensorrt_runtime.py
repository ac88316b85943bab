"""TensorRT: an ONNX file, as an engine built on this device, behind the `Runtime` protocol.

Written against the real names of 8.6, 10.3, 10.16, 11.4 and RTX, and run against a fake engine that computes through
ONNX Runtime. **No engine was ever executed by us**: `make gpu-check` does it where there is a GPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda import AUTO, open_cuda
from .engine_cache import EngineCache, default_folder
from .errors import AgentError
from .ready_engine import identity_of, ready_engine
from .runtimes import DEFAULT
from .tensorrt_api import failure, made, open_tensorrt
from .tensorrt_build import BuildOptions
from .tensorrt_engine import batch_limits, check_names, numpy_type, open_engine
from .trtexec import second_opinion

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .cuda import Cuda
    from .runtimes import Loading
    from .tensorrt_api import Api
    from .tensorrt_engine import Opened

    Json = dict[str, Any]
    Opinion = Callable[[str | None], Json | None]
    """The shape for trtexec's eyes -> what it says."""


@dataclass(frozen=True)
class DeviceOptions:
    """What is set for TensorRT: by `devices.toml` the last three, by the host where a board keeps its engines.

    `library` and `cuda` are as good as any machine needs them; a request of one's own may name others.
    """

    library: str | None = None
    """`tensorrt` or `tensorrt_rtx`; by default the first that is there."""
    cuda: str = AUTO
    """How memory is reached: `auto`, `ctypes`, `cuda-python`, `pycuda`, or the path of a libcudart."""
    cache_dir: str | None = None
    """Where engines are kept; by default the user's cache."""
    workspace_bytes: int | None = None
    """See `BuildOptions`."""
    use_dla: bool = False
    """See `BuildOptions`: never run by us."""
    dla_core: int = 0


class TensorrtRuntime:
    """An engine with its buffers. `batch`: the smallest and the largest it takes; more images go in several calls."""

    def __init__(
        self, api: Api, cuda: Cuda, opened: Opened, names: tuple[str, str], facts: Json, opinion: Opinion | None = None
    ) -> None:
        self._api, self._cuda, self._opened, self._facts, self._opinion = api, cuda, opened, facts, opinion
        self._input_name, self._output_name = names
        engine = opened.engine
        check_names(api, engine, names)
        smallest, largest = batch_limits(engine, names[0])
        self._limits = (smallest[0], largest[0])
        self._image_shape = largest[1:]
        self._context = made(api, "no execution context", engine.create_execution_context, "E_ENGINE")
        self._stream = cuda.create_stream()
        self._marks = [cuda.create_event() for _ in range(4)]
        self._types = tuple(numpy_type(api, engine, name) for name in names)
        self._num_rows = 0
        self._output_shape = self._take_rows(largest[0])
        shapes = (largest, self._output_shape)
        self._addresses = [self._buffer(*pair) for pair in zip(names, shapes, self._types)]  # noqa: B905 (Python 3.10)
        # page-locked: a copy to or from other memory goes through the driver's own buffer, and waits for it
        self._host = [
            cuda.alloc_host(int(np.prod(shape)) * kind.itemsize).view(kind)
            for shape, kind in zip(shapes, self._types)  # noqa: B905 (Python 3.10)
        ]

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the logits (N,K) of preprocessed `images` (N,C,H,W), `largest batch` at a time; E_SHAPE, E_EXECUTE."""
        if images.shape[1:] != self._image_shape or len(images) == 0:
            expected = ", ".join(map(str, self._image_shape))
            raise AgentError("E_SHAPE", f"images of shape {images.shape}: the engine takes (1 or more, {expected})")
        size = self._limits[1]
        if len(images) <= size:
            return self._infer(images)
        return np.concatenate([self._infer(images[start : start + size]) for start in range(0, len(images), size)])

    def trace(self, images: NDArray[np.float32]) -> dict[str, int]:
        """Infer one batch; give its parts in ns. Marks in the stream cost: latency is not told by this.

        `h2d`, `gpu`, `d2h`: CUDA's clock between marks; `enqueue`: the host's time in the call that starts the work.
        """
        begin, copied, executed, end = self._marks
        source, logits = self._filled(images)
        self._cuda.record(begin, self._stream)
        self._cuda.copy_to_device(self._addresses[0], source, self._stream)
        self._cuda.record(copied, self._stream)
        called = time.perf_counter_ns()
        self._execute()
        enqueued = time.perf_counter_ns()
        self._cuda.record(executed, self._stream)
        self._cuda.copy_to_host(logits, self._addresses[1], self._stream)
        self._cuda.record(end, self._stream)
        self._cuda.synchronize(self._stream)
        parts = {"h2d": (begin, copied), "gpu": (copied, executed), "d2h": (executed, end)}
        between = {name: round(self._cuda.elapsed_ms(*pair) * 1e6) for name, pair in parts.items()}
        return {**between, "enqueue": enqueued - called}

    def describe(self) -> Json:
        """Name the runtime, what it runs on, how memory is reached, and where its engine comes from."""
        return self._facts

    def cross_check(self, batch: int) -> Json | None:
        """What trtexec says of the same engine at this batch: see `trtexec.second_opinion`. None without one."""
        if self._opinion is None:
            return None
        sizes = "x".join(map(str, (batch, *self._image_shape)))
        fixed = self._limits[0] == self._limits[1]  # an engine of one shape takes no other, not even that one by name
        return self._opinion(None if fixed else f"{self._input_name}:{sizes}")

    def close(self) -> None:
        """Give the buffers back, the device's and the page-locked ones; nothing can be inferred after it."""
        for address in self._addresses:
            self._cuda.free(address)
        while self._host:
            self._cuda.free_host(self._host.pop())

    def _infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        source, logits = self._filled(images)
        self._cuda.copy_to_device(self._addresses[0], source, self._stream)
        self._execute()
        self._cuda.copy_to_host(logits, self._addresses[1], self._stream)
        self._cuda.synchronize(self._stream)
        return logits[: len(images)].astype(np.float32)

    def _filled(self, images: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The page-locked input with the images in it, and the output for their logits; the engine is told how many."""
        rows = max(len(images), self._limits[0])
        if rows != self._num_rows:
            self._output_shape = self._take_rows(rows)
        shapes = ((rows, *self._image_shape), self._output_shape)
        source, logits = (
            buffer[: int(np.prod(shape))].reshape(shape)
            for buffer, shape in zip(self._host, shapes)  # noqa: B905 (Python 3.10)
        )
        source[: len(images)] = images
        source[len(images) :] = 0  # an engine of a fixed batch: empty images fill it up
        return source, logits

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise failure(self._api, "E_EXECUTE", "execution failed", "it gave no reason")

    def _take_rows(self, rows: int) -> tuple[int, ...]:
        """Set the batch, and give the shape of its logits."""
        shape = (rows, *self._image_shape)
        if not self._context.set_input_shape(self._input_name, shape):
            raise failure(self._api, "E_SHAPE", f"input shape {shape} refused", "it gave no reason")
        self._num_rows = rows
        return tuple(self._context.get_tensor_shape(self._output_name))

    def _buffer(self, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> int:
        address = self._cuda.alloc(int(np.prod(shape)) * kind.itemsize)
        made(self._api, f"no address for {name}", lambda: self._context.set_tensor_address(name, address))
        return address


def load(loading: Loading) -> TensorrtRuntime:
    """Open the file's engine, from the cache or built now; AgentError says what failed and what to do."""
    if loading.mode != DEFAULT:
        raise AgentError("E_REQUEST", f"tensorrt has no mode {loading.mode}")
    options = _device_options(loading.options)
    api = open_tensorrt(options.library)
    cuda, cuda_facts = open_cuda(options.cuda)
    build = BuildOptions(
        precision=loading.precision,
        batch=loading.batch,
        workspace_bytes=options.workspace_bytes,
        use_dla=options.use_dla,
        dla_core=options.dla_core,
    )
    identity = identity_of(api, (loading.path, *loading.beside), build, cuda_facts)
    cache = EngineCache(Path(options.cache_dir) if options.cache_dir else default_folder())
    dla_core = options.dla_core if options.use_dla else None
    begin = time.perf_counter()
    engine_facts = ready_engine(api, cache, identity, loading, build, dla_core)
    ready = time.perf_counter()
    facts = {
        "name": api.library,
        "version": api.version,
        "providers": ["DLA", "GPU"] if options.use_dla else ["GPU"],
        "threads": None,
        "host_memory": "page-locked buffers; copying into and out of them is timed",
        "cuda": cuda_facts,
        "engine": engine_facts,
    }
    plan = cache.plan_path(identity)
    opened = open_engine(api, plan.read_bytes(), dla_core)
    facts["cold_ms"] = {
        "build": engine_facts["build_seconds"] * 1e3,
        "children": (ready - begin) * 1e3,
        "deserialise": (time.perf_counter() - ready) * 1e3,
    }
    opinion = None if api.has_target else partial(second_opinion, plan, api.version, dla_core)  # RTX has another tool
    return TensorrtRuntime(api, cuda, opened, (loading.input_name, loading.output_name), facts, opinion)


def version(options: Json) -> str | None:
    """TensorRT's version here, which decides between a bundle's files.

    None without one, and for TensorRT-RTX, whose numbers begin anew: it takes what the newest TensorRT takes.
    """
    try:
        api = open_tensorrt(options.get("library"))
    except AgentError:
        return None
    return None if api.has_target else api.version


def _device_options(options: Json) -> DeviceOptions:
    try:
        return DeviceOptions(**options)
    except TypeError:
        known = ", ".join(DeviceOptions.__dataclass_fields__)
        raise AgentError("E_OPTION", f"options {sorted(options)} of the device: known are {known}") from None
