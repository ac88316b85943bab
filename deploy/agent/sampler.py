"""A process beside the measurement that reads every sensor ten times a second, at the lowest priority, on another CPU.

It keeps its readings to itself until it is told to end: nothing is written while latency is measured.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .child import start_child
from .nvml import nvml_sensors
from .sensors import find_sensors
from .tegrastats import tegrastats_sensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .sensors import Sensor

    Json = dict[str, Any]

RATE_HZ = 10.0
_READY_S = 10.0


class Readings(NamedTuple):
    """What the sampler read. Times are those of `time.perf_counter_ns`, which Linux counts alike in every process."""

    names: list[str]
    """Of the sensors, `kind/which`: see `sensors`."""
    times_ns: NDArray[np.int64]
    """(N, 2): begin and end of each round of readings."""
    values: NDArray[np.float64]
    """(N, sensors); not a number where a sensor did not answer."""
    cpu_s: float | None
    """CPU time the sampler took; None where it died."""


class Sampler:
    """Reads from `with` on until `stop`. `root`: where the file system of the machine that is looked at begins."""

    def __init__(self, root: str = "/", rate_hz: float = RATE_HZ, niceness: int = 19) -> None:
        self.rate_hz = rate_hz
        self._request = {"root": root, "rate_hz": rate_hz, "niceness": niceness}
        self.readings: Readings | None = None

    def __enter__(self) -> Sampler:
        self._output = tempfile.TemporaryFile()
        self._process = start_child("sample", self._request, stdout=self._output)
        self._wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Readings:
        """End it and give what it read."""
        if self.readings is None:
            assert self._process.stdin is not None
            with suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(_READY_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._output.seek(0)
            self.readings = _readings(self._output.read().decode())
            self._output.close()
        return self.readings

    def names(self) -> list[str]:
        """Name its sensors, once it runs."""
        first = os.pread(self._output.fileno(), 1 << 16, 0).partition(b"\n")[0]
        found: list[str] = json.loads(first or "[]")
        return found

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def _wait_until_ready(self) -> None:
        """It reads once and says so: from then on it is small, and its start disturbs nothing."""
        until = time.monotonic() + _READY_S
        while self._process.poll() is None and os.fstat(self._output.fileno()).st_size == 0:
            if time.monotonic() > until:
                return
            time.sleep(0.01)


def sample(request: Json) -> None:
    """In the child: read until stdin ends, then print names, times and values as lines of JSON."""
    _step_aside(request["niceness"])
    root = Path(request["root"])
    sensors = [*find_sensors(root), *nvml_sensors()]
    told = any(name.startswith("power_w/") for name, _ in sensors)
    with ExitStack() as stack:
        more = [] if told else stack.enter_context(tegrastats_sensors())  # only where files do not say it
        _sample([*sensors, *more], 1 / request["rate_hz"])


def _sample(sensors: list[Sensor], period_s: float) -> None:
    sys.stdout.write(json.dumps([name for name, _ in sensors]) + "\n")
    sys.stdout.flush()
    rounds: list[Any] = []
    due = time.perf_counter()
    while True:
        begin = time.perf_counter_ns()
        values = [read() for _, read in sensors]
        rounds.append((begin, time.perf_counter_ns(), values))
        due = max(due + period_s, time.perf_counter())
        if select.select([sys.stdin], [], [], max(0.0, due - time.perf_counter()))[0]:
            break
    sys.stdout.write("".join(json.dumps(found) + "\n" for found in rounds))
    sys.stdout.write(json.dumps(time.process_time()) + "\n")


def _step_aside(niceness: int) -> None:
    """The last CPU, at the lowest priority: runtimes fill CPUs from the first on."""
    os.nice(niceness)
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > 1:
        os.sched_setaffinity(0, allowed[-1:])


def _readings(text: str) -> Readings:
    import numpy as np  # here: the child needs none, and is small without it

    lines = text.splitlines()
    names = json.loads(lines[0]) if lines else []
    whole = len(lines) > 1 and not lines[-1].startswith("[")
    rounds = [json.loads(line) for line in lines[1 : -1 if whole else None]]
    times = np.array([found[:2] for found in rounds], dtype=np.int64).reshape(-1, 2)
    values = np.array([found[2] for found in rounds], dtype=np.float64).reshape(len(rounds), len(names))
    return Readings(names, times, values, json.loads(lines[-1]) if whole else None)
