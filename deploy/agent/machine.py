"""The state of the device: what it is, how busy it is, what this process takes. Linux; None where not readable."""

from __future__ import annotations

import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

from . import vitals
from .kernel_files import text_of
from .sensors import quota_cpus


def describe() -> dict[str, Any]:
    """Name the device's `system`, `processor` and `num_cpus` (those this process may run on)."""
    return {"system": platform.platform(), "processor": _processor(), "num_cpus": len(os.sched_getaffinity(0))}


def boot_id() -> str:
    """Name this boot of the device: another value is proof of a reboot, whatever the clock says."""
    return text_of("/proc/sys/kernel/random/boot_id").strip()


def power_mode(status: str = "/var/lib/nvpmodel/status") -> str | None:
    """Name a Jetson's power mode as its `nvpmodel` service notes it (`pmode:0002`); None elsewhere."""
    return text_of(status).strip() or None


def snapshot() -> dict[str, Any]:
    """Read what changes: load averages (1, 5, 15 minutes), governors, memory left in bytes, power mode, CPU quota, and

    clocks, temperatures, swap and who else is on the GPU (`vitals.describe`).
    """
    governors = {
        text_of(path).strip() for path in Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")
    }
    available = _kibibytes(text_of("/proc/meminfo"), "MemAvailable:")
    return {
        "loadavg": list(os.getloadavg()),
        "governors": sorted(governors - {""}) or None,
        "power_mode": power_mode(),
        "quota_cpus": quota_cpus(Path("/")),
        "vitals": vitals.describe(Path("/")),
        "available_memory_bytes": available,
    }


def memory_bytes() -> tuple[int, int, str]:
    """Give this process's resident memory now and at its peak, and where the peak was read.

    VmHWM counts from this program's start. `ru_maxrss` does not: Linux hands the parent's peak on through exec.
    """
    status = text_of("/proc/self/status")
    now, peak = _kibibytes(status, "VmRSS:"), _kibibytes(status, "VmHWM:")
    if now is not None and peak is not None:
        return now, peak, "VmHWM"
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return maximum, maximum, "ru_maxrss"


class ForeignLoad:
    """Measures how many CPUs others keep busy, over a window that opens when this is made."""

    def __init__(self) -> None:
        self._begin = _cpu_seconds()

    def num_cpus(self) -> float | None:
        """Mean number of CPUs kept busy by anything but this process since then; None under 1 s or without /proc.

        The load average would not do: it remembers the minute before, which often was our own training.
        """
        end = _cpu_seconds()
        if self._begin is None or end is None:
            return None
        wall, busy, own = (now - then for now, then in zip(end, self._begin))  # noqa: B905 (strict= is Python 3.10)
        # The kernel counts busy time in ticks of 10 ms: a shorter window would be mostly rounding.
        return max(0.0, busy - own) / wall if wall >= 1.0 else None


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Seconds of the wall clock, busy seconds of the CPUs this process may use, seconds this process used."""
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    rows = [line.split() for line in text_of("/proc/stat").splitlines()]
    # user nice system idle iowait irq softirq steal: all but idle and iowait; another guest's steal is load as well
    busy = [sum(map(int, row[1:4] + row[6:9])) for row in rows if row and row[0] in allowed]
    if not busy:
        return None
    return time.perf_counter(), sum(busy) / os.sysconf("SC_CLK_TCK"), time.process_time()


def _processor() -> str:
    """The board's own name where there is a device tree (Jetson, Raspberry Pi), else the CPU's."""
    board = text_of("/proc/device-tree/model").strip("\0 \n")
    names = [line for line in text_of("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return board or (names[0].partition(":")[2].strip() if names else platform.machine())


def _kibibytes(text: str, key: str) -> int | None:
    for line in text.splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None
