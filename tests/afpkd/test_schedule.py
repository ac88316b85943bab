"""The learning rate as a function of the step."""

import warnings
from typing import Literal

import pytest
import torch

from afpkd.settings import TrainSettings, learning_rate


@pytest.mark.parametrize("total", [7, 50, 351])
def test_onecycle_equals_torch(total: int) -> None:
    settings = TrainSettings(epochs=1, lr=0.3, schedule="onecycle")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=total, cycle_momentum=False)
    for step in range(total):
        assert learning_rate(settings, step, total) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference.step() if step < total - 1 else None


def test_multistep_drops_at_its_milestones() -> None:
    settings = TrainSettings(epochs=240, lr=0.05, milestones=(150, 180, 210))
    rates = [learning_rate(settings, epoch * 10, 2400) for epoch in (0, 149, 150, 179, 180, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.00005, 0.00005])


@pytest.mark.parametrize("schedule", ["multistep", "cosine"])
def test_warming_up_equals_torch_and_ends_in_the_schedule(schedule: Literal["multistep", "cosine"]) -> None:
    settings = TrainSettings(epochs=4, lr=0.2, schedule=schedule, lr_warm_up=5)
    plain = TrainSettings(epochs=4, lr=0.2, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-3, total_iters=5)
    for step in range(12):
        expected = learning_rate(plain, step, 12) * optimizer.param_groups[0]["lr"]
        assert learning_rate(settings, step, 12) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        reference.step()
    assert learning_rate(settings, 5, 12) == learning_rate(plain, 5, 12)


def test_onecycle_needs_no_warming_up() -> None:
    with pytest.raises(ValueError, match="lr_warm_up: schedule = 'onecycle' rises by itself: leave it at 0"):
        TrainSettings(epochs=4, schedule="onecycle", lr_warm_up=5)
    with pytest.raises(ValueError, match="lr_warm_up: must lie between 0 and 1e"):
        TrainSettings(epochs=4, lr_warm_up=-1)
