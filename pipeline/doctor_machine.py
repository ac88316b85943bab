"""The doctor on the machine: GPU and driver, TensorRT, ssh, disk, memory."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from afpkd.errors import install
from pipeline.doctor import Finding, bad, ok, warn
from pipeline.doctor_packages import imported
from pipeline.gpu_nodes import gpu_nodes

_GB = 10**9
_RUN_BYTES = _GB // 5
"""What a run of the default recipe and its temporary files take, and some: it leaves 14 MB."""
_DATA_BYTES = 2 * _GB
"""CIFAR-100's archive and what is unpacked of it, or Tiny-ImageNet decoded."""
_LEAST_MEMORY, _GOOD_MEMORY = 5 * _GB // 2, 4 * _GB
"""Two trainings side by side, 1.1 GB each with torch; exporting detectors and other large networks wants more."""
_CGROUP = Path("/sys/fs/cgroup")


def gpu() -> Iterator[Finding]:
    """Is there an NVIDIA GPU that torch can use? The main job needs none."""
    nodes, facts = gpu_nodes(), imported()
    if facts.get("cuda"):
        yield ok("GPU", f"{facts['gpu']}, {_driver()}, used by torch {facts['torch']}")
    elif not nodes:
        yield warn(
            "GPU", "no NVIDIA GPU: networks train on the CPU", "nothing to mend: only recipes of 200 epochs want one"
        )
    else:
        wanted = facts.get("built_for") or "none"
        mend = f"install a driver for CUDA {wanted} or newer, or train with TRAIN_DEVICE=cpu"
        yield warn("GPU", f"{nodes[0]} is there ({_driver()}), but torch cannot use it", mend)


def tensorrt() -> Iterator[Finding]:
    """NVIDIA's libraries: RTX checks exported files without a GPU, TensorRT itself runs them on one."""
    if find_spec("tensorrt_rtx") is None:
        mend = f"make clean setup, or {install('rtx')} (Linux on x86-64)"
        yield warn("TensorRT", "no TensorRT-RTX: exported files are not held to NVIDIA's builder", mend)
    else:
        yield ok("TensorRT", f"RTX {importlib.metadata.version('tensorrt-rtx')} checks exported files")
    if find_spec("tensorrt") is None:
        yield warn("TensorRT", "no TensorRT here: DEVICE=local-gpu cannot measure", install("tensorrt"))


def ssh() -> Iterator[Finding]:
    """OpenSSH's client, through which boards are reached."""
    missing = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
    if missing:
        words = f"{' and '.join(missing)} not on PATH: boards cannot be reached"
        yield warn("ssh", words, "apt install openssh-client")
    else:
        yield ok("ssh", _first_line(["ssh", "-V"]))


def disk(runs: Path, free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free) -> Iterator[Finding]:
    """Room for runs, data and temporary files, and whether they may be written."""
    yield _room("runs", runs, _RUN_BYTES, free, bad)
    try:
        yield _room("temporary files", Path(tempfile.gettempdir()), _RUN_BYTES, free, bad)
    except FileNotFoundError:  # it has tried several places
        told = "temporary files: nowhere can one be written: is the disk full?"
        yield bad("disk", told, "free some room, or name a place with TMPDIR")

    from afpkd.data.dataset import data_root  # with numpy, which may be missing: what is known so far is told

    yield _room("data sets", data_root(), _DATA_BYTES, free, warn)


def memory(meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    """Memory that a run can have: the machine's, a container's, the shell's."""
    limits = {"free here": _available(meminfo), "left to the container": _container(), "allowed by ulimit": _ulimit()}
    known = {words: size for words, size in limits.items() if size is not None}
    words = min(known, key=lambda name: known[name])
    said = f"{known[words] / _GB:.1f} GB {words}, {len(os.sched_getaffinity(0))} CPU cores"
    if known[words] < _LEAST_MEMORY:
        yield bad("memory", f"{said}: {_LEAST_MEMORY / _GB:g} GB are needed", "end other programs, or raise the limit")
    elif known[words] < _GOOD_MEMORY:
        yield warn("memory", said, f"for larger recipes than the default {_GOOD_MEMORY / _GB:g} GB are better")
    else:
        yield ok("memory", said)


def _room(
    what: str, path: Path, least: int, free: Callable[[Path], int], verdict: Callable[[str, str, str], Finding]
) -> Finding:
    there = next(parent for parent in (path.resolve(), *path.resolve().parents) if parent.is_dir())
    setting = {"runs": "RUNS", "data sets": "AFPKD_DATA"}.get(what, "TMPDIR")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return verdict("disk", f"{what}: {there} cannot be written ({error.strerror})", f"name another with {setting}")
    size = free(there)
    if size < least:
        mend = f"free some, or name another place with {setting}"
        return verdict("disk", f"{what}: {size / _GB:.2f} GB free at {there}: {least / _GB:g} are needed", mend)
    return ok("disk", f"{what}: {size / _GB:.1f} GB free at {there}")


def _available(meminfo: Path) -> int | None:
    if not meminfo.exists():
        return None  # not Linux
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _container() -> int | None:
    try:
        most, used = ((_CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return int(most) - int(used) + _reclaimable() if most.isdigit() else None


def _reclaimable() -> int:
    """Bytes of a container's memory that hold files' pages, which make way for whoever asks."""
    try:
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = dict(line.split() for line in lines)
    return sum(int(found.get(name, 0)) for name in ("inactive_file", "slab_reclaimable"))


def _ulimit() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    said = _first_line(["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"])
    return f"driver {said}"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=30)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else f"{command[0]} says nothing (exit code {done.returncode})"
