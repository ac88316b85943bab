"""Several processes, one training: each takes its part of every batch, and all hold the same weights.

`batch_size` is that of all processes together. Each draws the order, the crops and the flips of the whole batch, as one
process would, and works on its own part; torch's DistributedDataParallel averages the gradients. Losses are means over
images, so the mean over equal parts is the loss of the whole batch, up to rounding. What is no plain mean over images
is made one by `averaged`: the locations on objects by which FCOS divides, the area that prompts may keep. The data set
lies whole in the memory of each process.

What N processes do otherwise than one:
- BatchNorm: on GPUs the statistics of the whole batch (SyncBatchNorm), on CPUs those of each part; the running ones are
  the first process's, which the others take over before each step.
- Random numbers inside a network (dropout): a function of (seed, step, process).
- Prompts with `dropped = "swapped"`: the next image is the next one of the part.
- Losses with `relative = true`: each part in units of its own spread.

In a single process nothing here exchanges or changes a value; its networks draw as those of process 0.
"""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from afpkd.data.batches import generator_for
from afpkd.errors import UserError
from afpkd.losses import Progress

_LONGEST_WAIT = datetime.timedelta(days=7)
"""While the first process reads data or scores the held-out split; when one dies, torchrun ends the others."""

Losses = Callable[[Tensor, Any, Progress], dict[str, Tensor]]
"""(normalised images, target, progress) -> named losses."""


def join(kind: str) -> torch.device:
    """Enter the group of the processes that torchrun started; return this one's device: a GPU each, or the CPU."""
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all of them are on this machine: nobody else may listen in
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    return device


def leave() -> bool:
    """Dissolve the group, once all are here; True in the first process, which goes on alone."""
    first = is_first()
    if num_processes() > 1:
        dist.barrier()
        dist.destroy_process_group()
    return first


def num_processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that measures, saves and speaks."""
    return rank() == 0


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process go ahead, and the others follow once it is through: they find what it has downloaded."""
    if not is_first():
        dist.barrier()
    yield
    if is_first() and num_processes() > 1:
        dist.barrier()


def part_of(num: int) -> slice:
    """Which of a batch's `num` images are this process's; `num` is a multiple of the number of processes."""
    size = num // num_processes()
    return slice(rank() * size, (rank() + 1) * size)


def averaged(value: Tensor) -> Tensor:
    """The mean of a value over the processes; gradients flow into this process's own share of it.

    With DistributedDataParallel, which averages gradients, f(averaged(x)) then teaches what f(mean over x) would.
    """
    if num_processes() == 1:
        return value
    mean = value.detach().clone()
    dist.all_reduce(mean)
    mean /= num_processes()
    return mean + (value - value.detach()) if value.requires_grad else mean


def averaged_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of the whole batch's losses, without gradients; one exchange for all of them.

    In float32, in which they are summed: a sum in bf16 stops growing at some 256 times its addend.
    """
    own = {name: loss.detach().float() for name, loss in losses.items()}
    if num_processes() == 1:
        return own
    values = averaged(torch.stack(list(own.values())))
    return dict(zip(losses, values.unbind(), strict=True))


def averaged_gradients(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradients of the whole batch from those of the parts; one exchange for all of them."""
    if num_processes() == 1:
        return gradients
    there = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    mean = averaged(torch.cat([gradient.float().flatten() for gradient in there]))
    return torch.split(mean, [gradient.numel() for gradient in there])


def seed_step(seed: int, step: int) -> None:
    """Seed what networks draw themselves (dropout): processes draw apart, and a resumed run draws the same again."""
    drawn = generator_for(f"network of process {rank()}", seed, step, torch.device("cpu")).initial_seed()
    torch.default_generator.manual_seed(drawn)  # torch.manual_seed asks every backend there may be: 60 times as long
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        torch.cuda.manual_seed(drawn)


def synchronise_norms(module: nn.Module, device: torch.device) -> None:
    """Have BatchNorms that learn take the statistics of the whole batch, on GPUs: torch has it for these alone."""
    if num_processes() > 1 and device.type == "cuda":
        replace_norms(module)


def replace_norms(module: nn.Module) -> None:
    """SyncBatchNorm in the place of each BatchNorm that learns; frozen ones stay what their network knows them as.

    UserError for a kind of BatchNorm that torch's would not compute the same as.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and child.weight is not None:
            if child.weight.requires_grad:
                setattr(module, name, _synchronised(child))
        else:
            replace_norms(child)


def _synchronised(norm: nn.Module) -> nn.Module:
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    if type(norm).__module__.startswith("timm."):  # it holds the activation, too
        from timm.layers.norm_act import convert_sync_batchnorm as convert
    elif type(norm).forward is not nn.BatchNorm2d.forward:  # 1d's, too: their base's
        told = f"{type(norm).__name__} is a BatchNorm of its own, whose statistics several GPUs cannot share"
        raise UserError("E_TRAIN_PROCESSES", f"{told}: use TRAIN_PROCESSES=1")
    return convert(norm)


def shared(losses: Losses, trained: nn.Module, *, has_unused: bool) -> Losses:
    """The losses as one forward pass of DistributedDataParallel over `trained`: backward then averages gradients.

    has_unused: whether a parameter takes no part in any loss.
    """
    if num_processes() == 1:
        return losses
    # Said of 1x1 convolutions, whose gradients have two equal layouts: a copy that costs nothing here.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    wrapped: Losses = DistributedDataParallel(_Step(losses, trained), find_unused_parameters=has_unused)
    return wrapped


class _Step(nn.Module):
    """A learner's losses as a module of what is trained; the teacher is reached through them and is no part of it."""

    def __init__(self, losses: Losses, trained: nn.Module) -> None:
        super().__init__()
        self.trained = trained
        self._losses = losses

    def forward(self, images: Tensor, target: Any, progress: Progress) -> dict[str, Tensor]:
        return self._losses(images, target, progress)
