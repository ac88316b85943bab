"""Settings of one training run and its learning-rate schedule. No torch: a recipe is checked without it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afpkd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one network is trained. Every key is part of the run's identity."""

    epochs: float
    """Passes over the train split without its held-out part; a fraction is allowed (prompts need few steps)."""
    batch_size: int = 64
    """Images per step. An epoch drops its last, incomplete batch."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum, or Adam."""
    lr: float = 0.05
    """Peak learning rate, for this batch size; never scaled behind your back."""
    momentum: float = 0.9
    """SGD momentum (ignored by Adam)."""
    nesterov: bool = False
    """Nesterov momentum (SGD)."""
    weight_decay: float = 5e-4
    """L2 penalty on all parameters, as the CIFAR literature has it."""
    schedule: Literal["multistep", "onecycle", "cosine"] = "multistep"
    """multistep: lr x decay at each milestone; onecycle: up for 30 % of the steps, then cosine down; cosine: down."""
    milestones: tuple[float, ...] = ()
    """Epochs after which multistep multiplies the rate by `decay`."""
    decay: float = 0.1
    """Factor of a milestone."""
    lr_warm_up: int = 0
    """Steps over which the rate rises linearly from a thousandth of the schedule's (torchvision's detectors: 1,000)."""
    amp: Literal["gpu", "gpu+cpu", "never"] = "gpu"
    """Where networks run in mixed precision (bf16; fp16 with loss scaling on GPUs without it): on GPUs, on CPUs that
    compute in bf16 too (AMX, AVX512_BF16: measured 1.7 times faster), or nowhere. Losses on logits and accuracies are
    computed in fp32."""
    compile: bool = False
    """torch.compile the trained network."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for key in ("epochs", "lr", "decay"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}: must be greater than 0, got {getattr(self, key)}")
        for key, least, most in (
            ("batch_size", 2, 1e6),
            ("epochs", 0, 1e6),
            ("momentum", 0, 1),
            ("weight_decay", 0, 1),
            ("lr_warm_up", 0, 1e6),
        ):
            require_between(key, getattr(self, key), least, most)
        if self.milestones and self.schedule != "multistep":
            raise ValueError(f"milestones: only schedule = 'multistep' has them, not '{self.schedule}'")
        if any(not 0 < milestone < self.epochs for milestone in self.milestones):
            raise ValueError(f"milestones: each must lie between 0 and epochs = {self.epochs:g}, got {self.milestones}")
        if self.lr_warm_up and self.schedule == "onecycle":
            raise ValueError("lr_warm_up: schedule = 'onecycle' rises by itself: leave it at 0")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov: needs optimizer = 'sgd' with momentum")


def require_between(key: str, value: float, least: float, most: float) -> None:
    """ValueError naming `key` where `value` is outside least..most."""
    if not least <= value <= most:
        raise ValueError(f"{key}: must lie between {least:g} and {most:g}, got {value:g}")


def require_defaults(section: Any, keys: Sequence[str], why: str) -> None:
    """ValueError, with the cause, where a key of `section` that would do nothing has not its default."""
    for key in keys:
        default = getattr(type(section), key)
        if getattr(section, key) != default:
            told = json.dumps(default) if isinstance(default, bool | str) else f"{default:g}"
            raise ValueError(f"{key}: {why}: leave it at {told}")


def require_equal_parts(batch_size: int, processes: int, key: str = "batch_size") -> None:
    """UserError where so many processes cannot share a batch equally, two images each or more.

    Two: BatchNorm cannot normalise the 1x1 map of one image, and what prompts drop is swapped between two.
    """
    if processes == 1 or (batch_size % processes == 0 and batch_size >= 2 * processes):
        return
    fitting = [num for num in range(1, batch_size // 2 + 1) if batch_size % num == 0]
    raise UserError(
        "E_TRAIN_PROCESSES",
        f"TRAIN_PROCESSES={processes}: {key} = {batch_size} is that of all processes together, and does not part into "
        f"{processes} equal shares of two images or more: use one of {', '.join(map(str, fitting))}",
    )


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """The rate of step `step` (0-based) of `total_steps`: a pure function, so that a resumed run needs no state.

    onecycle equals torch's OneCycleLR with its defaults (Smith and Topin 2019) and no momentum cycle, `lr_warm_up`
    LinearLR with a `start_factor` of a thousandth.
    """
    rate = _scheduled(settings, step, total_steps)
    if step < settings.lr_warm_up:
        return rate * (1e-3 + (1 - 1e-3) * step / settings.lr_warm_up)
    return rate


def _scheduled(settings: TrainSettings, step: int, total_steps: int) -> float:
    if settings.schedule == "multistep":
        epoch = step / total_steps * settings.epochs
        return settings.lr * settings.decay ** sum(epoch >= milestone for milestone in settings.milestones)
    if settings.schedule == "cosine":
        return _cosine(settings.lr, settings.lr * 1e-4, step / total_steps)
    start, end = settings.lr / 25, settings.lr / 25 * 1e-4
    peak, last = 0.3 * total_steps - 1, total_steps - 1
    if step <= peak:
        return _cosine(start, settings.lr, step / peak)
    return _cosine(settings.lr, end, (step - peak) / (last - peak))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
