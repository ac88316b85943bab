"""NVIDIA's management library (desktop and server GPUs, not Jetsons) through ctypes: clocks, power, heat, why slow.

Names and numbers are those of nvml.h, which keeps them. Read on an idle H200 by us, never beside an engine.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sensors import Read, Sensor

_LIBRARY = "libnvidia-ml.so.1"
_DRIVER = "libcuda.so.1"
_CLOCK_SM, _CLOCK_MEMORY, _TEMPERATURE_GPU = 1, 2, 0

SLOWED_BY = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of `nvmlClocksThrottleReason…` that mean slower than asked; idle, application and display clocks do not."""


def nvml_sensors(library: str = _LIBRARY, driver: str = _DRIVER) -> list[Sensor]:
    """Give the sensors of the GPU that CUDA calls its first: there the network runs. None without NVML.

    None either where there are several and CUDA (`driver`) cannot say which: another's power is not this one's.
    `gpu_hz`, `emc_hz`, `power_w`, `temperature_c`, and `slowed_by`, a sum of `SLOWED_BY`.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return []
    device = _first_of_cuda(nvml, driver) if nvml.nvmlInit_v2() == 0 else None
    if device is None:
        return []
    kinds: list[tuple[str, str, tuple[int, ...], Any, float]] = [
        ("gpu_hz/gpu0", "nvmlDeviceGetClockInfo", (_CLOCK_SM,), ctypes.c_uint, 1e6),
        ("emc_hz/gpu0", "nvmlDeviceGetClockInfo", (_CLOCK_MEMORY,), ctypes.c_uint, 1e6),
        ("power_w/gpu0", "nvmlDeviceGetPowerUsage", (), ctypes.c_uint, 1e-3),
        ("temperature_c/gpu0", "nvmlDeviceGetTemperature", (_TEMPERATURE_GPU,), ctypes.c_uint, 1),
        ("slowed_by/gpu0", "nvmlDeviceGetCurrentClocksThrottleReasons", (), ctypes.c_ulonglong, 1),
    ]
    found = [(name, _reader(nvml, call, device, before, kind, scale)) for name, call, before, kind, scale in kinds]
    return [(name, read) for name, read in found if read() is not None]


def _first_of_cuda(nvml: Any, driver: str) -> ctypes.c_void_p | None:
    """NVML counts all by their places; CUDA those it is shown (CUDA_VISIBLE_DEVICES), the fastest first."""
    count, device = ctypes.c_uint(), ctypes.c_void_p()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return None
    if count.value == 1:
        code = nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    else:
        place = _place_of_cudas_first(driver)
        code = place is None or nvml.nvmlDeviceGetHandleByPciBusId_v2(place, ctypes.byref(device))
    return None if code else device


def _place_of_cudas_first(driver: str) -> bytes | None:
    """Its address on the PCI bus, such as `0000:3b:00.0`. The driver alone is asked: no context, nothing on the GPU."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return None
    number, place = ctypes.c_int(), ctypes.create_string_buffer(32)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGet(ctypes.byref(number), 0) != 0:
        return None
    return place.value if cuda.cuDeviceGetPCIBusId(place, len(place), number) == 0 else None


def _reader(nvml: Any, call: str, device: ctypes.c_void_p, before: tuple[int, ...], kind: Any, scale: float) -> Read:
    def read() -> float | None:
        value = kind()
        try:
            code = getattr(nvml, call)(device, *before, ctypes.byref(value))
        except AttributeError:  # an older driver
            return None
        # only bits that mean slower: an idle GPU has reasons too
        number = value.value & sum(SLOWED_BY) if kind is ctypes.c_ulonglong else value.value
        return number * scale if code == 0 else None

    return read
