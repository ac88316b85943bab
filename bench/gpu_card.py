"""The card itself: does each CUDA library of the agent copy to it and back, and what does NVML say of it?

Part of `make gpu-check`: what every measurement on a GPU stands on, without an engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deploy.agent.cuda import LIBRARIES, Cuda
from deploy.agent.errors import AgentError
from deploy.agent.nvml import nvml_sensors

NUM_BYTES = 256 * 2**20
"""Some 10 ms over PCIe 4: long enough that the host's clock and the card's must agree."""

AGREES = 0.2
"""By so much of the host's time the events' may be less: the host's begins before and ends after."""


class Copy(NamedTuple):
    """`NUM_BYTES` to the card and back through one library."""

    library: str
    facts: str
    """Version, driver and device, or why the library is not there."""
    equal: bool | None
    """Whether the same bytes came back; None where the library is not there."""
    host_ms: float
    events_ms: float

    @property
    def ok(self) -> bool:
        """Whether it copies and its events tell the time; a library that is not installed fails nothing."""
        return self.equal is None or (self.equal and (1 - AGREES) * self.host_ms <= self.events_ms <= self.host_ms)


def copies(libraries: dict[str, Callable[[], Cuda]] | None = None, num_bytes: int = NUM_BYTES) -> list[Copy]:
    """Copy there and back through each of `libraries` (default: all that the agent knows)."""
    found = []
    for name, open_device in (LIBRARIES if libraries is None else libraries).items():
        try:
            found.append(_copy(name, open_device(), num_bytes))
        except AgentError as error:
            absent = error.code == "E_NO_CUDA"
            found.append(Copy(name, str(error), None if absent else False, 0.0, 0.0))
    return found


def _copy(name: str, cuda: Cuda, num_bytes: int) -> Copy:
    facts = cuda.describe()
    source, target = cuda.alloc_host(num_bytes), cuda.alloc_host(num_bytes)
    source[:] = np.frombuffer(np.random.default_rng(0).bytes(num_bytes), np.uint8)
    target[:] = 0
    address, stream = cuda.alloc(num_bytes), cuda.create_stream()
    begin, end = cuda.create_event(), cuda.create_event()
    for _ in range(2):  # the first call of a process pays for the driver's start
        started = time.perf_counter()
        cuda.record(begin, stream)
        cuda.copy_to_device(address, source, stream)
        cuda.copy_to_host(target, address, stream)
        cuda.record(end, stream)
        cuda.synchronize(stream)
        host_ms = (time.perf_counter() - started) * 1e3
    events_ms = cuda.elapsed_ms(begin, end)
    cuda.free(address)
    told = f"CUDA {facts['runtime']}, driver {facts['driver']}, {facts['compute_capability']}, {facts['num_sms']} SMs"
    return Copy(name, told, bool(np.array_equal(source, target)), host_ms, events_ms)


def card_table(found: list[Copy]) -> str:
    """Markdown-free lines: a library each, then what NVML reads."""
    lines = [f"{'library':<12} {'host ms':>8} {'events ms':>10}  {NUM_BYTES // 2**20} MiB to the card and back"]
    for copy in found:
        verdict = "not there" if copy.equal is None else "ok" if copy.ok else "FAILED"
        lines.append(f"{copy.library:<12} {copy.host_ms:>8.2f} {copy.events_ms:>10.2f}  {verdict}: {copy.facts}")
    read = [f"{name} {value:g}" for name, sensor in nvml_sensors() if (value := sensor()) is not None]
    lines.append(f"NVML: {', '.join(read) or 'nothing is read'}")
    return "\n".join(lines) + "\n"
