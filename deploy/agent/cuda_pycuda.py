"""pycuda: for who has it already. It is built from source against the device's CUDA; nothing here needs it."""

from __future__ import annotations

import atexit
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda_errors import cuda_error, version_text
from .errors import AgentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TEXTS = (("out of memory", 2), ("driver version is insufficient", 35), ("no CUDA-capable device", 100))
"""pycuda raises CUDA's sentence, not its number."""


class Pycuda:
    """pycuda's first device behind the `Cuda` protocol, in its primary context: the one TensorRT uses."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._events: list[Any] = []
        _call("cuInit", driver.init)
        self._device = _call("cuDeviceGet", driver.Device, 0)
        self._context = _call("cuDevicePrimaryCtxRetain", self._device.retain_primary_context)
        _call("cuCtxPushCurrent", self._context.push)
        atexit.register(self._context.pop)  # pycuda aborts a process that ends with a context on its stack

    def alloc(self, num_bytes: int) -> int:
        """See `Cuda.alloc`."""
        allocation = _call("cuMemAlloc", self._driver.mem_alloc, num_bytes)
        self._allocations[int(allocation)] = allocation  # its memory is freed with the object
        return int(allocation)

    def alloc_host(self, num_bytes: int) -> NDArray[np.uint8]:
        """See `Cuda.alloc_host`."""
        array: NDArray[np.uint8] = _call("cuMemHostAlloc", self._driver.pagelocked_empty, num_bytes, np.uint8)
        return array

    def free_host(self, array: NDArray[np.uint8]) -> None:
        """See `Cuda.free_host`: pycuda gives it back with the array's last view."""

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        _call("cuMemFree", self._allocations.pop(address).free)

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """See `Cuda.copy_to_device`."""
        _call("cuMemcpyHtoDAsync", self._driver.memcpy_htod_async, address, source, self._streams[stream])

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """See `Cuda.copy_to_host`."""
        _call("cuMemcpyDtoHAsync", self._driver.memcpy_dtoh_async, target, address, self._streams[stream])

    def create_stream(self) -> int:
        """See `Cuda.create_stream`."""
        stream = _call("cuStreamCreate", self._driver.Stream)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def synchronize(self, stream: int) -> None:
        """See `Cuda.synchronize`."""
        _call("cuStreamSynchronize", self._streams[stream].synchronize)

    def create_event(self) -> int:
        """See `Cuda.create_event`."""
        self._events.append(_call("cuEventCreate", self._driver.Event))
        return len(self._events) - 1  # pycuda hides the handle

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        _call("cuEventRecord", self._events[event].record, self._streams[stream])

    def elapsed_ms(self, begin: int, end: int) -> float:
        """See `Cuda.elapsed_ms`."""
        return float(_call("cuEventElapsedTime", self._events[begin].time_till, self._events[end]))

    def describe(self) -> dict[str, Any]:
        """See `Cuda.describe`."""
        major, minor = self._device.compute_capability()
        return {
            "library": "pycuda",
            "runtime": ".".join(map(str, self._driver.get_version()[:2])),
            "driver": version_text(self._driver.get_driver_version()),
            "compute_capability": f"{major}.{minor}",
            "num_sms": int(self._device.get_attribute(self._driver.device_attribute.MULTIPROCESSOR_COUNT)),
        }


def _call(call: str, function: Any, *arguments: Any) -> Any:
    """Turn pycuda's errors (all RuntimeErrors or MemoryErrors) into ours."""
    try:
        return function(*arguments)
    except (RuntimeError, MemoryError) as error:
        text = re.sub(r"^\w+ failed: ", "", str(error))
        number = next((number for words, number in _TEXTS if words in text), 999)  # 999: cudaErrorUnknown
        raise cuda_error(number, call, text) from None


def open_device() -> Pycuda:
    """Import pycuda and see that there is a device: E_NO_CUDA, E_NO_DRIVER, E_NO_DEVICE."""
    try:
        from pycuda import driver
    except ImportError as error:
        raise AgentError("E_NO_CUDA", f"{error}: pip install pycuda (it needs CUDA's compiler)") from None
    return Pycuda(driver)
