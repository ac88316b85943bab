"""The learning rate as a function of the step."""

import warnings

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
