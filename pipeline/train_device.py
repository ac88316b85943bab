"""What trains: the CPU, or a GPU where torch finds one; and what a record says of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from afpkd.errors import UserError
from afpkd.models import is_foreign
from afpkd.record import Json, provenance
from pipeline.networks import arch_of
from pipeline.recipe import Recipe
from pipeline.recipe_detection import CocoData

if TYPE_CHECKING:
    import torch

GRAPH_VARIABLE = "AFPKD_CUDA_GRAPH"
"""0: no step is recorded as a CUDA graph."""


def machine_with(device: torch.device) -> Json:
    """The machine of a record; beside its processor the GPU, where that is what trains."""
    import torch

    machine: Json = provenance()["machine"]
    return machine if device.type != "cuda" else {**machine, "gpu": torch.cuda.get_device_name(device)}


def records_steps(device: torch.device, recipe: Recipe, *, compiled: bool, processes: int) -> bool:
    """Whether each step is recorded once and replayed as a CUDA graph: where all that it does is known to be the same.

    On one GPU, for classifiers of ours; a network of somebody else's may decide in Python what it does next.
    """
    ours = not any(is_foreign(arch_of(recipe, role)) for role in ("teacher", "student"))
    usual = device.type == "cuda" and processes == 1 and not compiled
    return usual and ours and not isinstance(recipe.data, CocoData) and os.environ.get(GRAPH_VARIABLE) != "0"


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
