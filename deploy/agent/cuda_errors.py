"""What CUDA's error numbers mean to a user; the numbers are the same in the runtime and the driver library."""

from __future__ import annotations

from .errors import AgentError

_KNOWN = {
    2: ("E_OUT_OF_MEMORY", "the device's memory is full: end other programs, or take a smaller batch"),
    35: ("E_NO_DRIVER", "no NVIDIA driver for this CUDA is loaded: install or update it (on a Jetson: flash JetPack)"),
    100: ("E_NO_DEVICE", "a driver but no NVIDIA GPU: is it seen by `nvidia-smi`, and passed into the container?"),
}
"""cudaErrorMemoryAllocation, cudaErrorInsufficientDriver, cudaErrorNoDevice."""


def cuda_error(number: int, call: str, text: str) -> AgentError:
    """Make the error of a failed `call`; `text` is CUDA's own."""
    code, advice = _KNOWN.get(number, ("E_CUDA", "restart the device where it persists"))
    return AgentError(code, f"{call}: CUDA error {number} ({text}): {advice}")


def version_text(number: int) -> str:
    """12060 -> 12.6; 0 (no driver) -> none."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"
