"""What a machine can be asked ten times a second while it computes: power, clocks, heat, throttling, load. From files.

Jetsons of JetPack 4 to 7, Linux on any CPU; what is not there, or not readable, is left out. Paths are those of
NVIDIA's developer guides (INA3221 in iio on JetPack 4, in hwmon from 5 on) and of the kernel's own documents. Never run
on a Jetson by us.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .kernel_files import matching, number_of, text_of
from .vitals import GPU_DEVFREQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[], float | None]
    Sensor = tuple[str, Read]

COUNTERS = ("energy_j", "throttles", "over_current", "quota_throttles", "quota_throttled_s", "steal_s")
"""Kinds that only ever grow (`energy_j` wraps): what counts is their growth."""


def find_sensors(root: Path) -> list[Sensor]:
    """Give every sensor under `root` that can be read now: a name `kind/which`, and what gives its value, or None.

    Kinds, beside `COUNTERS`: `power_w`, `temperature_c`, `gpu_hz`, `emc_hz`, `cpu_hz`, `cooling` (a cooling device's
    state; fans left out), `fan`, `memory_available_bytes`.
    """
    found = [
        *_hwmon_rails(root),
        *_iio_rails(root),
        *_files(root, "temperature_c", "sys/class/thermal/thermal_zone*/temp", 1e-3, _type_beside),
        *_gpu_clocks(root),
        *_emc_clock(root),
        *_files(root, "cpu_hz", "sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq", 1e3, _folder),
        *_cooling(root),
        *_over_current(root),
        *_files(root, "fan", "sys/class/hwmon/hwmon*/pwm1", 1, _folder),
        *_files(root, "fan", "sys/devices/pwm-fan/cur_pwm", 1, _folder),
        *_files(root, "throttles", "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count", 1, _cpu),
        *_files(root, "energy_j", "sys/class/powercap/intel-rapl:*/energy_uj", 1e-6, _name_beside),
        *_quota(root),
        ("steal_s/all", lambda: _steal_s(root)),
        ("memory_available_bytes/all", lambda: _available_bytes(root)),
    ]
    return [(name, read) for name, read in found if read() is not None]


def quota_cpus(root: Path) -> float | None:
    """Give how many CPUs this process's cgroup may use at most; None where there is no limit."""
    for folder in _cgroups(root):
        words = text_of(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            return int(words[0]) / int(words[1])
        quota, period = (number_of(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota is not None and period and quota > 0:
            return quota / period
    return None


def _hwmon_rails(root: Path) -> Iterator[Sensor]:
    """INA3221 (millivolt times milliampere) and INA238 (microwatt, on Thor): JetPack 5 and later."""
    for folder in matching(root, "sys/class/hwmon/hwmon*"):
        chip = text_of(folder / "name").strip()
        if chip == "ina238":
            yield f"power_w/{text_of(folder / 'label').strip() or 'VIN'}", _scaled(folder / "power1_input", 1e-6)
        if chip != "ina3221":
            continue
        for label in matching(folder, "in*_label"):
            number, name = label.name[2:-6], text_of(label).strip()
            volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
            if name and name != "NC" and amperes.exists():  # the last is the sum of what all shunts show: no rail
                yield f"power_w/{name}", _product(volts, amperes)


def _iio_rails(root: Path) -> Iterator[Sensor]:
    """INA3221 of JetPack 4: `rail_name_0` names the rail whose milliwatt are in `in_power0_input`."""
    for label in matching(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
        name, number = text_of(label).strip(), label.name[len("rail_name_") :]
        if name and name != "NC":
            yield f"power_w/{name}", _scaled(label.parent / f"in_power{number}_input", 1e-3)


def _gpu_clocks(root: Path) -> Iterator[Sensor]:
    for folder in matching(root, "sys/class/devfreq/*"):
        if GPU_DEVFREQ.fullmatch(folder.name):
            yield f"gpu_hz/{folder.name}", _scaled(folder / "cur_freq", 1)


def _emc_clock(root: Path) -> Iterator[Sensor]:
    """The memory's clock: debugfs, which root alone reads; the first that is there."""
    for name in ("bpmp/debug/clk/emc/rate", "clk/emc/clk_rate"):
        path = root / "sys/kernel/debug" / name
        if number_of(path) is not None:
            yield "emc_hz/emc", _scaled(path, 1)
            return


_SLOWS_NOTHING = ("intel_powerclamp", "hot-surface-alert")
"""Cooling devices whose state is no throttling: Intel's says -1 at rest, Orin's is a notice that its case is hot."""


def _cooling(root: Path) -> Iterator[Sensor]:
    """A cooling device other than a fan cools by slowing something down: a state above that of before is throttling."""
    for folder in matching(root, "sys/class/thermal/cooling_device*"):
        kind = text_of(folder / "type").strip()
        if "fan" not in kind.lower() and kind not in _SLOWS_NOTHING:
            yield f"cooling/{folder.name[len('cooling_device') :]}:{kind}", _scaled(folder / "cur_state", 1)


def _over_current(root: Path) -> Iterator[Sensor]:
    """Orin's soctherm: OC1 under-voltage, OC2 average, OC3 instantaneous over-current; each event slowed it down."""
    for path in matching(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"):
        yield f"over_current/{path.name.split('_')[0]}", _scaled(path, 1)


def _quota(root: Path) -> Iterator[Sensor]:
    for folder in _cgroups(root):
        facts = _facts(folder / "cpu.stat")
        if "nr_throttled" in facts:
            yield "quota_throttles/cgroup", partial(_num_throttled, folder / "cpu.stat")
            yield "quota_throttled_s/cgroup", partial(_throttled_s, folder / "cpu.stat")
            return


def _num_throttled(stat: Path) -> float | None:
    return _facts(stat).get("nr_throttled")


def _throttled_s(stat: Path) -> float | None:
    """cgroup v2 counts microseconds, v1 nanoseconds."""
    facts = _facts(stat)
    if "throttled_usec" in facts:
        return facts["throttled_usec"] / 1e6
    return facts["throttled_time"] / 1e9 if "throttled_time" in facts else None


def _cgroups(root: Path) -> Iterator[Path]:
    """Folders that may limit this process's CPU time: its own cgroup, then those above it; version 2 and version 1."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"] if controllers else ["sys/fs/cgroup"]
        for mount in mounts:
            folder = root / mount / path.lstrip("/")
            yield from (above for above in (folder, *folder.parents) if (root / mount) in (above, *above.parents))


def _steal_s(root: Path) -> float | None:
    """Seconds that another guest of this machine's host took from all our CPUs."""
    words = text_of(root / "proc/stat").partition("\n")[0].split()
    return int(words[8]) / os.sysconf("SC_CLK_TCK") if len(words) > 8 and words[0] == "cpu" else None


def _available_bytes(root: Path) -> float | None:
    found = re.search(r"^MemAvailable:\s+(\d+)", text_of(root / "proc/meminfo"), flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _files(root: Path, kind: str, pattern: str, scale: float, name: Callable[[Path], str]) -> Iterator[Sensor]:
    for path in matching(root, pattern):
        yield f"{kind}/{name(path)}", _scaled(path, scale)


def _scaled(path: Path, scale: float) -> Read:
    def read() -> float | None:
        value = number_of(path)
        return None if value is None else value * scale

    return read


def _product(volts: Path, amperes: Path) -> Read:
    def read() -> float | None:
        millivolt, milliampere = number_of(volts), number_of(amperes)
        return None if millivolt is None or milliampere is None else millivolt * milliampere / 1e6

    return read


def _folder(path: Path) -> str:
    return path.parent.name


def _cpu(path: Path) -> str:
    return path.parent.parent.name


def _type_beside(path: Path) -> str:
    return text_of(path.with_name("type")).strip() or path.parent.name


def _name_beside(path: Path) -> str:
    return "{}:{}".format(path.parent.name, text_of(path.with_name("name")).strip())


def _facts(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text_of(path), flags=re.MULTILINE)}
