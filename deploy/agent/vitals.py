"""How the device is doing: power mode, clocks, memory, temperatures, and who else is on the GPU. Read from files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .kernel_files import matching, number_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    Json = dict[str, Any]

_GPU_NODES = re.compile(r"/dev/(nvgpu/|nvhost-(as-)?gpu|nvidia\d+$)")
"""What a process that computes on the GPU holds open: on Jetsons by generation, and on PCI cards."""

_IDLE = ("nvidia-persiste",)
"""Keeps the driver loaded and computes nothing (nvidia-persistenced; the kernel cuts names)."""

GPU_DEVFREQ = re.compile(r"\d+\.(gpu|gv11b|ga10b|gp10b)|gpu-gpc-0")


def describe(root: Path) -> Json:
    """Give `power_mode`, `power_modes`, `clocks`, `memory`, `temperatures_c`, `gpu_processes`, `gpu_load_percent`."""
    return {
        "power_mode": _power_mode(root),
        "power_modes": _power_modes(root),
        "clocks": clocks(root),
        "memory": _memory(root),
        "temperatures_c": _temperatures(root),
        "gpu_processes": _gpu_processes(root),
        "gpu_load_percent": _gpu_load_percent(root),
    }


def clocks(root: Path) -> Json:
    """Hz of the CPUs (one a frequency domain) and the GPU: now, lowest and highest allowed; `locked` where these meet.

    `jetson_clocks` locks by raising the lowest to the highest; not of CPUs that the power mode switched off.
    """
    domains = [path for path in matching(root, "sys/devices/system/cpu/cpufreq/*") if not _is_off(path)]
    cpus = [_frequencies(path, "scaling_{}_freq", 1000) for path in domains]
    gpus = [_frequencies(path, "{}_freq", 1) for path in _gpus(root)]
    known = [clock for clock in (*cpus, *gpus) if clock]
    return {
        "cpu": [clock for clock in cpus if clock],
        "gpu": [clock for clock in gpus if clock],
        "locked": all(clock["min_hz"] == clock["max_hz"] for clock in known) if known else None,
    }


def _is_off(domain: Path) -> bool:
    """Whether none of a frequency domain's CPUs is online."""
    online = domain / "affected_cpus"
    return online.exists() and not text_of(online).strip()


def _gpus(root: Path) -> list[Path]:
    return [path for path in matching(root, "sys/class/devfreq/*") if GPU_DEVFREQ.fullmatch(path.name)]


def _gpu_load_percent(root: Path) -> float | None:
    """How busy a Jetson's GPU is just now, whoever keeps it so; its driver tells per mille, that of Thor nothing."""
    loads = [number_of(path / "device" / "load") for path in _gpus(root)]
    return max((load / 10 for load in loads if load is not None), default=None)


def _power_mode(root: Path) -> Json | None:
    """The number that the nvpmodel service notes, and its name in nvpmodel.conf."""
    found = re.search(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status"))
    if not found:
        return None
    number = int(found[1])
    named = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", text_of(root / "etc/nvpmodel.conf"))
    return {"id": number, "name": named[1] if named else None}


def _power_modes(root: Path) -> list[Json]:
    """All that nvpmodel.conf lists."""
    found = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text_of(root / "etc/nvpmodel.conf"), re.MULTILINE
    )
    return [{"id": int(number), "name": name} for number, name in found]


def _frequencies(folder: Path, pattern: str, unit: int) -> Json | None:
    values = [number_of(folder / pattern.format(name)) for name in ("cur", "min", "max")]
    if None in values[1:]:
        return None
    now, lowest, highest = (None if value is None else value * unit for value in values)
    governor = text_of(folder / "scaling_governor").strip() or text_of(folder / "governor").strip() or None
    return {"name": folder.name, "now_hz": now, "min_hz": lowest, "max_hz": highest, "governor": governor}


def _memory(root: Path) -> Json | None:
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", text_of(root / "proc/meminfo"), flags=re.MULTILINE))
    if "MemTotal" not in facts:
        return None
    names = {"total": "MemTotal", "available": "MemAvailable", "swap_total": "SwapTotal", "swap_free": "SwapFree"}
    return {f"{key}_bytes": int(facts.get(name, 0)) * 1024 for key, name in names.items()}


def _temperatures(root: Path) -> dict[str, float]:
    """Degrees by zone. A zone whose unit sleeps answers with an error on Jetsons: it is left out."""
    zones = {}
    for path in matching(root, "sys/class/thermal/thermal_zone*"):
        millidegrees = number_of(path / "temp")
        if millidegrees is not None:
            zones[text_of(path / "type").strip() or path.name] = millidegrees / 1000
    return zones


def _gpu_processes(root: Path) -> list[Json]:
    """Processes with the GPU open, but this one and what it started; those of other users are seen by root alone."""
    found = []
    for folder in (root / "proc").glob("[0-9]*"):
        name = text_of(folder / "comm").strip()
        others = name not in _IDLE and any(_GPU_NODES.match(node) for node in _open_files(folder / "fd"))
        if others and not _is_ours(folder):  # the sampler looks at the GPU too
            found.append({"pid": int(folder.name), "name": name})
    return sorted(found, key=lambda process: int(process["pid"]))


def _is_ours(folder: Path) -> bool:
    """Whether this process is the one of the folder in /proc, or one of those above it."""
    seen: set[str] = set()
    while folder.name not in ("0", *seen):
        if folder.name == str(os.getpid()):
            return True
        seen.add(folder.name)
        words = text_of(folder / "stat").rpartition(")")[2].split()  # behind `pid (name)`, which may hold anything
        folder = folder.with_name(words[1] if len(words) > 1 else "0")
    return False


def _open_files(folder: Path) -> Iterable[str]:
    try:
        links = list(folder.iterdir())
    except OSError:
        return
    for link in links:
        try:
            yield os.readlink(link)  # noqa: PTH115 (Path.readlink is Python 3.9)
        except OSError:
            continue
