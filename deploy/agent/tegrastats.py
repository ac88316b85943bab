"""NVIDIA's `tegrastats`, for a Jetson whose power cannot be read from files. Its lines differ by JetPack.

Slower and coarser than files (it averages, and is a process of its own): the last resort.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sensors import Sensor

_COMMAND = ("tegrastats", "--interval", "100")


def readings_from_line(line: str) -> dict[str, float]:
    """Give the numbers of one line, by sensor: `power_w`, `temperature_c`, `gpu_hz`, `emc_hz`.

    Power: `POM_5V_IN 2532/2532` (JetPack 4, mW now / average), `VDD_IN 4940mW/4940mW` (5 and later). Clocks:
    `GR3D_FREQ 0%@114`, `0%@[1300,1300]` (the highest of the clusters), in MHz. Heat: `CPU@35.5C`, `cpu@48.2C`.
    """
    found = {f"power_w/{name}": int(now) / 1e3 for name, now in _POWER.findall(line)}
    found.update({f"temperature_c/{name}": float(degrees) for name, degrees in _HEAT.findall(line)})
    for kind, key in (("gpu_hz/gpu", "GR3D_FREQ"), ("emc_hz/emc", "EMC_FREQ")):
        clock = re.search(rf"\b{key} \d+%@\[?([\d,]+)", line)
        if clock:
            found[kind] = max(map(int, clock[1].strip(",").split(","))) * 1e6
    return found


_POWER = re.compile(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+(?:mW)?(?= |$)")
_HEAT = re.compile(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C")


@contextmanager
def tegrastats_sensors() -> Iterator[list[Sensor]]:
    """Start it, give the sensors of its first line for as long as the context lasts; none where it is not there."""
    try:
        process = subprocess.Popen(_COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError:
        yield []
        return
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    latest = readings_from_line(process.stdout.readline().decode(errors="replace"))
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_NONBLOCK)
    first = next(iter(latest), None)

    def read(name: str) -> float | None:
        if name == first:  # once a round, for all
            latest.update(readings_from_line(_newest_line(descriptor)))
        return latest.get(name)

    try:
        yield [(name, partial(read, name)) for name in list(latest)]
    finally:
        process.kill()
        process.communicate()


def _newest_line(descriptor: int) -> str:
    """The last whole line that waits; empty where none does."""
    try:
        lines = os.read(descriptor, 1 << 16).decode(errors="replace").splitlines(keepends=True)
    except BlockingIOError:
        return ""
    return next((line for line in reversed(lines) if line.endswith("\n")), "")
