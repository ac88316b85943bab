"""NVIDIA GPUs as the kernel shows them; torch is not asked, since it takes seconds. Standard library only."""

from __future__ import annotations

from pathlib import Path

_OF_EACH = "nvidia[0-9]*"
_OF_ALL = ("dxg", "nvhost-*gpu*", "nvgpu")  # of WSL, of a Jetson: they do not say how many there are
_DEV = Path("/dev")


def gpu_nodes() -> list[Path]:
    """What stands for GPUs in /dev, those of a driver first; empty where there is none."""
    return [path for node in (_OF_EACH, *_OF_ALL) for path in sorted(_DEV.glob(node))]


def num_gpus() -> int | None:
    """How many there are; None where the kernel does not say."""
    found = gpu_nodes()
    counted = sum(path.match(_OF_EACH) for path in found)
    return None if found and not counted else counted
