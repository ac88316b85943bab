"""The verb `probe`: what the device is, what it has, how it is doing, and what it can run.

Everything is read from files; nothing is started and no runtime imported, since importing one may crash. What cannot
be read is None. Written from documentation and from others' captured files: never run on a Jetson by us.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import PROTOCOL, board, machine, vitals
from .clocks import left_changed
from .jobs import holder, listed
from .runtimes import RUNTIMES
from .store import free_bytes

if TYPE_CHECKING:
    Json = dict[str, Any]


def probe(document: Json) -> Json:
    """Describe the device. `root`: where its file system begins, `/` unless a copy of another one is looked at."""
    root = Path(document.get("root", "/"))
    system = board.describe(root)
    return {
        "protocol": PROTOCOL,
        **system,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        **runtimes(system),
        **vitals.describe(root),
        "disk_free_bytes": free_bytes(),
        "boot_id": machine.boot_id(),
        "time_s": time.time(),
        "holder": holder(),
        "jobs": listed(),
        "clocks_left_changed": left_changed(Path()),
    }


def runtimes(system: Json | None = None) -> Json:
    """Give the version of numpy and of each runtime, `runtimes` that can be used, and `advice` on what is missing."""
    packages = {name: _module_version(name) for name in ("numpy", *RUNTIMES)}
    usable = [name for name in RUNTIMES if packages["numpy"] and packages[name]]
    return {**packages, "runtimes": usable, "advice": _advice(system or board.describe(Path("/")), packages, usable)}


def _module_version(name: str) -> str | None:
    """Give the version of a package that this interpreter would import; `unknown` where it does not say."""
    from importlib import metadata  # a third of what it takes to start, and no other verb needs it

    if importlib.util.find_spec(name) is None:
        return None
    for distribution in (name, f"{name}-gpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _advice(system: Json, packages: Json, runtimes: list[str]) -> list[str]:
    """Say what to install where something is missing: one line each."""
    lines = []
    if not packages["numpy"]:
        lines.append("numpy is missing: apt install python3-numpy")
    if system["l4t"] and not packages["tensorrt"]:
        found = f" (libnvinfer {system['libnvinfer']} is there)" if system["libnvinfer"] else ""
        lines.append(
            f"this Python has no tensorrt{found}: apt install python3-libnvinfer (or nvidia-jetpack), and let `python` "
            "be /usr/bin/python3"
        )
    if not runtimes:
        lines.append("nothing here can run a network: install TensorRT (on a Jetson by apt) or onnxruntime (by pip)")
    return lines
