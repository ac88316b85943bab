"""NVIDIA's cuda-bindings (`pip install cuda-bindings`, its major version that of the device's CUDA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .cuda_ctypes import array_at
from .cuda_errors import cuda_error, version_text
from .errors import AgentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SM_COUNT, _MAJOR, _MINOR = "MultiProcessorCount", "ComputeCapabilityMajor", "ComputeCapabilityMinor"


class PythonCuda:
    """cuda-bindings' first device behind the `Cuda` protocol."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._call("cudaGetDeviceCount")

    def alloc(self, num_bytes: int) -> int:
        """See `Cuda.alloc`."""
        return int(self._call("cudaMalloc", num_bytes))

    def alloc_host(self, num_bytes: int) -> NDArray[np.uint8]:
        """See `Cuda.alloc_host`."""
        return array_at(int(self._call("cudaMallocHost", num_bytes)), num_bytes)

    def free_host(self, array: NDArray[np.uint8]) -> None:
        """See `Cuda.free_host`."""
        self._call("cudaFreeHost", array.ctypes.data)

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        self._call("cudaFree", address)

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """See `Cuda.copy_to_device`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """See `Cuda.copy_to_host`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, stream)

    def create_stream(self) -> int:
        """See `Cuda.create_stream`."""
        return int(self._call("cudaStreamCreate"))

    def synchronize(self, stream: int) -> None:
        """See `Cuda.synchronize`."""
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> int:
        """See `Cuda.create_event`."""
        return int(self._call("cudaEventCreate"))

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, begin: int, end: int) -> float:
        """See `Cuda.elapsed_ms`."""
        return float(self._call("cudaEventElapsedTime", begin, end))

    def describe(self) -> dict[str, Any]:
        """See `Cuda.describe`."""
        return {
            "library": "cuda-python",
            "runtime": version_text(self._call("cudaRuntimeGetVersion")),
            "driver": version_text(self._call("cudaDriverGetVersion")),
            "compute_capability": f"{self._attribute(_MAJOR)}.{self._attribute(_MINOR)}",
            "num_sms": self._attribute(_SM_COUNT),
        }

    def _attribute(self, which: str) -> int:
        attribute = getattr(self._runtime.cudaDeviceAttr, f"cudaDevAttr{which}")
        return int(self._call("cudaDeviceGetAttribute", attribute, 0))

    def _call(self, call: str, *arguments: Any) -> Any:
        """Every function gives a tuple: an error of an enum, then its one result where it has one."""
        error, *result = getattr(self._runtime, call)(*arguments)
        if int(error) != 0:
            raise cuda_error(int(error), call, error.name)
        return result[0] if result else None


def open_device() -> PythonCuda:
    """Import cuda-bindings and see that there is a device: E_NO_CUDA, E_NO_DRIVER, E_NO_DEVICE."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise AgentError("E_NO_CUDA", f"{error}: pip install cuda-bindings, its major version that of CUDA") from None
    return PythonCuda(runtime)
