"""ctypes on libcudart: what every machine with CUDA has, and the default."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda_errors import cuda_error, version_text
from .errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
"""CUDA 13 (JetPack 7), 12 (JetPack 6), 11 (JetPack 5; its soname ends in .11.0), and the development link."""

_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_SM_COUNT, _MAJOR, _MINOR = 16, 75, 76  # cudaDeviceAttr


class CtypesCuda:
    """libcudart's first device behind the `Cuda` protocol."""

    def __init__(self, library: ctypes.CDLL, file: str) -> None:
        self._library, self._file = library, file
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        self._call("cudaGetDeviceCount", ctypes.byref(ctypes.c_int()))

    def alloc(self, num_bytes: int) -> int:
        """See `Cuda.alloc`."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return address.value or 0

    def alloc_host(self, num_bytes: int) -> NDArray[np.uint8]:
        """See `Cuda.alloc_host`."""
        address = ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return array_at(address.value or 0, num_bytes)

    def free_host(self, array: NDArray[np.uint8]) -> None:
        """See `Cuda.free_host`."""
        self._call("cudaFreeHost", ctypes.c_void_p(array.ctypes.data))

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """See `Cuda.copy_to_device`."""
        self._copy(address, source.ctypes.data, source.nbytes, _TO_DEVICE, stream)

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """See `Cuda.copy_to_host`."""
        self._copy(target.ctypes.data, address, target.nbytes, _TO_HOST, stream)

    def create_stream(self) -> int:
        """See `Cuda.create_stream`."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        return stream.value or 0

    def synchronize(self, stream: int) -> None:
        """See `Cuda.synchronize`."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def create_event(self) -> int:
        """See `Cuda.create_event`."""
        event = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(event))
        return event.value or 0

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed_ms(self, begin: int, end: int) -> float:
        """See `Cuda.elapsed_ms`."""
        elapsed = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(elapsed), ctypes.c_void_p(begin), ctypes.c_void_p(end))
        return elapsed.value

    def describe(self) -> dict[str, Any]:
        """See `Cuda.describe`."""
        return {
            "library": "ctypes",
            "file": self._file,
            "runtime": version_text(self._number("cudaRuntimeGetVersion")),
            "driver": version_text(self._number("cudaDriverGetVersion")),
            "compute_capability": f"{self._attribute(_MAJOR)}.{self._attribute(_MINOR)}",
            "num_sms": self._attribute(_SM_COUNT),
        }

    def _copy(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> None:
        pointers = (ctypes.c_void_p(target), ctypes.c_void_p(source))
        self._call(
            "cudaMemcpyAsync", *pointers, ctypes.c_size_t(num_bytes), ctypes.c_int(kind), ctypes.c_void_p(stream)
        )

    def _attribute(self, which: int) -> int:
        return self._number("cudaDeviceGetAttribute", ctypes.c_int(which), ctypes.c_int(0))

    def _number(self, call: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self._call(call, ctypes.byref(value), *arguments)
        return value.value

    def _call(self, call: str, *arguments: Any) -> None:
        number = getattr(self._library, call)(*arguments)
        if number != 0:
            raise cuda_error(number, call, self._library.cudaGetErrorString(number).decode())


def array_at(address: int, num_bytes: int) -> NDArray[np.uint8]:
    """Host memory as an array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


def open_device(path: str | None = None) -> CtypesCuda:
    """Load libcudart (`path`, or the newest found that the driver is new enough for), see that there is a device.

    AgentError: E_NO_CUDA, E_NO_DRIVER (of the newest), E_NO_DEVICE.
    """
    failures, too_new = [], None
    for candidate in [path] if path is not None else _candidates():
        try:
            library = ctypes.CDLL(candidate)
        except OSError as error:
            failures.append(str(error))
            continue
        try:
            return CtypesCuda(library, candidate)
        except AgentError as error:  # no driver, or an older one than this CUDA wants
            if error.code != "E_NO_DRIVER":
                raise
            too_new = too_new or error
    if too_new is not None:
        raise too_new
    raise AgentError("E_NO_CUDA", f"no libcudart ({failures[0]}): install CUDA's runtime (JetPack brings it)")


def _candidates() -> Iterator[str]:
    """What the loader finds by name, then CUDA's own folder, then the wheels beside this interpreter."""
    yield from _NAMES
    wheels = (Path(folder).glob("nvidia/*/lib") for folder in sys.path if folder.endswith("-packages"))
    for folder in [*map(Path, _FOLDERS), *(found for group in wheels for found in sorted(group))]:
        yield from (str(folder / name) for name in _NAMES if (folder / name).exists())
