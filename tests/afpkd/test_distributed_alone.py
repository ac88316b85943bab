"""What one process can tell of several: which batches part, which norms are synchronised; alone it shares nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from afpkd.distributed import (
    averaged,
    averaged_gradients,
    first_alone,
    is_first,
    num_processes,
    part_of,
    replace_norms,
    seed_step,
)
from afpkd.errors import UserError
from afpkd.models.fcos import FcosDetector
from afpkd.settings import require_equal_parts
from tests.afpkd import sharing


def test_alone_nothing_is_shared() -> None:
    value = torch.ones(3, requires_grad=True)
    assert (num_processes(), is_first(), part_of(8)) == (1, True, slice(0, 8))
    assert averaged(value) is value
    gradients = [value, None]
    assert averaged_gradients(gradients, [value, value]) is gradients
    with first_alone():
        pass


@pytest.mark.parametrize(
    ("batch", "processes", "fits"),
    [(64, 1, True), (64, 4, True), (64, 32, True), (64, 64, False), (64, 3, False), (7, 7, False)],
)
def test_a_batch_parts_into_equal_shares_of_two_or_more(batch: int, processes: int, *, fits: bool) -> None:
    if fits:
        require_equal_parts(batch, processes)
        return
    with pytest.raises(UserError, match=f"TRAIN_PROCESSES={processes}: distill.batch_size = {batch} is that of all"):
        require_equal_parts(batch, processes, "distill.batch_size")


def test_what_fits_instead_is_said() -> None:
    with pytest.raises(UserError, match=r"use one of 1, 2, 3, 4, 6 \[E_TRAIN_PROCESSES\]$"):
        require_equal_parts(12, 5)


def test_norms_that_learn_are_synchronised_on_gpus_and_frozen_ones_stay() -> None:
    net = sharing.network()
    names, parameters = list(net.state_dict()), list(net.parameters())
    replace_norms(net)
    assert list(net.state_dict()) == names
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    detector = FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3)
    detector.freeze_norms()
    replace_norms(detector)
    detector.train()
    norms = [module for module in detector.backbone.body.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 10
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize("name", ["regnetx_002", "mobilenetv4_conv_small"])
def test_norms_of_timm_that_hold_the_activation_keep_it(name: str) -> None:
    """torch's own conversion leaves it out, under the same names of weights: another network."""
    torch.manual_seed(0)
    net, images = timm.create_model(name, num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(images)
        replace_norms(net)
        assert torch.equal(net(images), expected)
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_norm_that_nobody_can_synchronise_is_refused() -> None:
    class Rectified(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    with pytest.raises(UserError, match=r"Rectified is a BatchNorm of its own, .*use TRAIN_PROCESSES=1 \[E_TRAIN"):
        replace_norms(nn.Sequential(nn.Conv2d(3, 4, 1), Rectified(4)))


def test_the_seed_of_a_step_is_set_in_one_process_and_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    seed_step(3, 0)  # before CUDA is used: it is not begun for this
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    for step in (5, 5, 6):
        seed_step(3, step)
        assert torch.initial_seed() == seeds[-1]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("case", ["plain", "afpkd"])
def test_a_step_of_our_own_networks_draws_nothing_of_the_seed(case: str, tmp_path: Path) -> None:
    """So that seeding each step has changed no number of theirs."""
    sharing.fitting(sharing.CASES[case], tmp_path, case).advance()
    after = torch.get_rng_state()
    seed_step(3, 0)
    assert torch.equal(torch.get_rng_state(), after)
