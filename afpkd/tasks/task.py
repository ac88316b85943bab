"""What a task is to the rest of the method: its losses, its score, and how far two answers of one network differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from afpkd.data.batches import Samples

Forward = Callable[[Tensor], Any]
"""Normalised images N, C, H, W -> the outputs of a network."""

Scores = dict[str, float | None]


class Task(Protocol):
    """Classification or detection."""

    @property
    def metric(self) -> str:
        """Name of the score that chooses the epoch: `top1`, `ap`."""

    @property
    def num_judged(self) -> int:
        """Images that phase 1 is judged on, and calibrated with."""

    def losses(self, model: nn.Module, outputs: Any, target: Any) -> dict[str, Tensor]:
        """The task's own losses by name: means over the batch, in natural units."""

    def changed(self, outputs: Any, clean: Any, temperature: float) -> Tensor:
        """How far a teacher's answers `outputs` are from its `clean` ones; differentiable, 0 where equal.

        A classifier's is a KL in nats, a detector's a sum of several.
        """

    def agreement(self, outputs: Any, clean: Any) -> float:
        """Percent of a teacher's `clean` answers that `outputs` give too."""

    def scores(self, forward: Forward, samples: Any) -> Scores:
        """The task's scores on a split in percent, 0-100; None: not defined there."""


def model_scores(task: Task, model: nn.Module, samples: Samples) -> Scores:
    """The scores of `model` in eval mode; its mode is put back."""
    mode = model.training
    model.eval()
    found = task.scores(model, samples)
    model.train(mode)
    return found
