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
from .kernel_files import matching
from .runtimes import RUNTIMES
from .store import free_bytes

if TYPE_CHECKING:
    Json = dict[str, Any]


_GPU_NODES = ("dev/nvmap", "dev/nvgpu/*/ctrl", "dev/nvhost-gpu", "dev/nvidia[0-9]*")
"""What CUDA opens to compute: on Jetsons by generation, and on PCI cards."""


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
        **runtimes(root, system),
        **vitals.describe(root),
        "disk_free_bytes": free_bytes(),
        "boot_id": machine.boot_id(),
        "time_s": time.time(),
        "holder": holder(),
        "jobs": listed(),
        "clocks_left_changed": left_changed(Path()),
    }


def runtimes(root: Path | None = None, system: Json | None = None) -> Json:
    """Give the version of numpy and of each runtime, `runtimes` that can be used, and `advice` on what is missing.

    root: as for `probe`; `system`: what `board` describes there.
    """
    root = root or Path("/")
    packages = {name: _module_version(name) for name in ("numpy", *RUNTIMES)}
    usable = [name for name in RUNTIMES if packages["numpy"] and packages[name]]
    advice = [*_advice(system or board.describe(root), packages, usable), *_closed_gpu(root)]
    return {**packages, "runtimes": usable, "advice": advice}


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


def _closed_gpu(root: Path) -> list[str]:
    """Say where the GPU is there, and not for this account: CUDA's own error would say something else."""
    nodes = [path for pattern in _GPU_NODES for path in matching(root, pattern)]
    closed = [str(path) for path in nodes if not os.access(str(path), os.R_OK | os.W_OK)]
    told = "sudo usermod -aG video,render with this account's name, then log in again"
    return [f"this account may not open {closed[0]}, which the GPU needs: {told}"] if closed else []
