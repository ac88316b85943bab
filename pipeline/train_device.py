"""What trains: the CPU, or a GPU where torch finds one; and what a record says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afpkd.errors import UserError
from afpkd.record import Json, provenance

if TYPE_CHECKING:
    import torch


def machine_with(device: torch.device) -> Json:
    """The machine of a record; beside its processor the GPU, where that is what trains."""
    import torch

    machine: Json = provenance()["machine"]
    return machine if device.type != "cuda" else {**machine, "gpu": torch.cuda.get_device_name(device)}


def torch_device(wanted: str, threads: int, processes: int) -> torch.device:
    """The device: `wanted` is auto, cpu or cuda; threads 0: torch's default; several processes join their group."""
    import torch

    from afpkd.distributed import join

    if threads:
        torch.set_num_threads(threads)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("E_TRAIN_DEVICE", "TRAIN_DEVICE=cuda: torch finds no CUDA device here: use cpu or auto")
    name = "cpu" if wanted == "cpu" or not torch.cuda.is_available() else "cuda"
    torch.backends.cudnn.allow_tf32 = False  # what is called float32 is: torch rounds convolutions on GPUs
    return join(name) if processes > 1 else torch.device(name)
