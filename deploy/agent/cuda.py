"""CUDA memory, streams and events behind a dozen calls, and which library makes them.

Three libraries do the same: ctypes on libcudart (nothing to install on a Jetson), NVIDIA's `cuda-bindings`, `pycuda`.
Their errors were seen for real without a driver and with a driver but no device; each has copied to an H200 and back,
its events telling the host's time (`make gpu-check`). **No engine was ever executed through them by us**.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from . import cuda_ctypes, cuda_pycuda, cuda_python
from .errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Json = dict[str, Any]


class Cuda(Protocol):
    """Memory, streams and events of one device, all named by plain integers. AgentError where a call fails."""

    def alloc(self, num_bytes: int) -> int:
        """Give the address of `num_bytes` of device memory; E_OUT_OF_MEMORY where there are not so many."""

    def alloc_host(self, num_bytes: int) -> NDArray[np.uint8]:
        """Give page-locked host memory, which the device reads and writes itself."""

    def free_host(self, array: NDArray[np.uint8]) -> None:
        """Give memory of `alloc_host` back; nobody may touch the array, or views of it, any more."""

    def free(self, address: int) -> None:
        """Give the memory at `address` back."""

    def copy_to_device(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Queue a copy of a contiguous array; it must stay as it is until the stream is synchronised."""

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Queue a copy into a contiguous array; it is filled once the stream is synchronised."""

    def create_stream(self) -> int:
        """Give a new stream; it lives as long as the process."""

    def synchronize(self, stream: int) -> None:
        """Wait until all that is queued on `stream` is done."""

    def create_event(self) -> int:
        """Give a new event, a mark in a stream that remembers its time; it lives as long as the process."""

    def record(self, event: int, stream: int) -> None:
        """Queue the mark: it takes its time once all before it is done."""

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Give the time between two marks whose stream was synchronised since."""

    def describe(self) -> Json:
        """Name `library`, CUDA's `runtime` and `driver` version, and of the device `compute_capability`, `num_sms`."""


AUTO = "auto"


def open_cuda(choice: str = AUTO) -> tuple[Cuda, Json]:
    """Open the first device through `choice`: `auto`, a key of `LIBRARIES`, or the path of a libcudart.

    Gives also what is recorded: what was asked, what was taken, what was passed over and why. `auto` goes on to the
    next library only where one is not installed: where one finds no driver, no other finds it.
    """
    if "/" in choice:
        cuda: Cuda = cuda_ctypes.open_device(choice)
        return cuda, {"asked": choice, "skipped": {}, **cuda.describe()}
    if choice != AUTO and choice not in LIBRARIES:
        known = ", ".join([AUTO, *LIBRARIES])
        raise AgentError("E_OPTION", f"unknown CUDA library {choice}: expected one of {known}, or a libcudart's path")
    skipped: dict[str, str] = {}
    for name in LIBRARIES if choice == AUTO else [choice]:
        try:
            cuda = LIBRARIES[name]()
        except AgentError as error:
            if error.code != "E_NO_CUDA":
                raise
            skipped[name] = error.message
            continue
        return cuda, {"asked": choice, "skipped": skipped, **cuda.describe()}
    raise AgentError("E_NO_CUDA", "; ".join(skipped.values()))


LIBRARIES: dict[str, Callable[[], Cuda]] = {
    "ctypes": cuda_ctypes.open_device,
    "cuda-python": cuda_python.open_device,
    "pycuda": cuda_pycuda.open_device,
}
