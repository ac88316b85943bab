"""A GPU that is not there: memory on the host, streams that do nothing before they are synchronised.

It is stricter than the real thing: a copy that leaves its allocation, a stream that was never made, or an address that
was freed is an error at once, and whoever reads a result before `synchronize` reads what was there before.
"""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda_errors import cuda_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_BUFFERS: dict[int, ctypes.Array[ctypes.c_char]] = {}
_PINNED: list[NDArray[np.uint8]] = []
"""Page-locked memory: which of it is copied from and to, `is_pinned` says."""

_QUEUES: dict[int, list[Callable[[], Any]]] = {}
_TIMES_NS: dict[int, int | None] = {}
"""Of every event: when the stream came to it; None before."""


class FakeCuda:
    """`Cuda` with `memory_bytes` of memory."""

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        self._memory_bytes = memory_bytes

    def alloc(self, num_bytes: int) -> int:
        """See `Cuda.alloc`."""
        if num_bytes + allocated_bytes() > self._memory_bytes:
            raise cuda_error(2, "cudaMalloc", "out of memory")
        buffer = ctypes.create_string_buffer(num_bytes)
        _BUFFERS[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def alloc_host(self, num_bytes: int) -> NDArray[np.uint8]:
        """See `Cuda.alloc_host`."""
        array = np.zeros(num_bytes, np.uint8)
        _PINNED.append(array)
        return array

    def free_host(self, array: NDArray[np.uint8]) -> None:
        """See `Cuda.free_host`."""
        (index,) = [index for index, one in enumerate(_PINNED) if one.ctypes.data == array.ctypes.data]
        del _PINNED[index]

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        if _BUFFERS.pop(address, None) is None:
            raise cuda_error(1, "cudaFree", "invalid argument")

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """See `Cuda.copy_to_device`."""
        self._copy(address, source.ctypes.data, source, address, stream)

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """See `Cuda.copy_to_host`."""
        self._copy(target.ctypes.data, address, target, address, stream)

    def create_stream(self) -> int:
        """See `Cuda.create_stream`."""
        stream = 0x5000 + len(_QUEUES)
        _QUEUES[stream] = []
        return stream

    def synchronize(self, stream: int) -> None:
        """See `Cuda.synchronize`."""
        actions = _queue(stream)
        while actions:
            actions.pop(0)()

    def create_event(self) -> int:
        """See `Cuda.create_event`."""
        event = 0xE000 + len(_TIMES_NS)
        _TIMES_NS[event] = None
        return event

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        if event not in _TIMES_NS:
            raise cuda_error(400, "cudaEventRecord", "invalid resource handle")
        _TIMES_NS[event] = None
        enqueue(stream, lambda: _TIMES_NS.update({event: time.perf_counter_ns()}))

    def elapsed_ms(self, begin: int, end: int) -> float:
        """See `Cuda.elapsed_ms`."""
        times = [_TIMES_NS.get(event) for event in (begin, end)]
        if times[0] is None or times[1] is None:
            raise cuda_error(600, "cudaEventElapsedTime", "device not ready")
        return (times[1] - times[0]) / 1e6

    def describe(self) -> dict[str, Any]:
        """See `Cuda.describe`."""
        version = {"runtime": "12.6", "driver": "12.6"}
        return {"library": "fake", **version, "compute_capability": "8.7", "num_sms": 8}

    def _copy(self, to: int, source: int, host: NDArray[Any], device: int, stream: int) -> None:
        if not host.flags["C_CONTIGUOUS"] or not is_allocated(device, host.nbytes):
            raise cuda_error(1, "cudaMemcpyAsync", "invalid argument")
        # The action holds on to `host`: its memory must outlive the call, as CUDA demands of the caller.
        enqueue(stream, lambda: ctypes.memmove(to, source, host.nbytes))


def enqueue(stream: int, action: Callable[[], Any]) -> None:
    """Do `action` when `stream` is synchronised, after all that was queued before."""
    _queue(stream).append(action)


def is_allocated(address: int, num_bytes: int) -> bool:
    """Whether `num_bytes` from `address` on lie in one allocation."""
    return any(
        begin <= address and address + num_bytes <= begin + len(buffer) for begin, buffer in list(_BUFFERS.items())
    )


def is_pinned(array: NDArray[Any]) -> bool:
    """Whether the array lies in page-locked memory."""
    return any(np.shares_memory(array, pinned) for pinned in _PINNED)


def pinned_bytes() -> int:
    """How much is page-locked now."""
    return sum(map(len, _PINNED))


def allocated_bytes() -> int:
    """How much is allocated now."""
    return sum(map(len, _BUFFERS.values()))


def _queue(stream: int) -> list[Callable[[], Any]]:
    if stream not in _QUEUES:
        raise cuda_error(400, "cudaStreamSynchronize", "invalid resource handle")
    return _QUEUES[stream]
