"""NVIDIA's management library (desktop and server GPUs, not Jetsons) through ctypes: clocks, power, heat, why slow.

Names and numbers are those of nvml.h, which keeps them. Never run on a GPU by us.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sensors import Read, Sensor

_LIBRARY = "libnvidia-ml.so.1"
_CLOCK_SM, _CLOCK_MEMORY, _TEMPERATURE_GPU = 1, 2, 0

SLOWED_BY = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of `nvmlClocksThrottleReason…` that mean slower than asked; idle, application and display clocks do not."""


def nvml_sensors(library: str = _LIBRARY) -> list[Sensor]:
    """Give the sensors of the first GPU; none without NVML.

    `gpu_hz`, `emc_hz`, `power_w`, `temperature_c`, and `slowed_by`, a sum of `SLOWED_BY`.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return []
    device = ctypes.c_void_p()
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0:
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
