"""The guard of the training loop: what is switched on must teach something before step 1."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afpkd.checkpoint import state_sha256
from afpkd.data.batches import Augmentation, Pixels
from afpkd.errors import UserError
from afpkd.learners import Learner, drowned, plain_learner
from afpkd.losses import Progress
from afpkd.models import build_model
from afpkd.settings import TrainSettings
from afpkd.train import Fitting

NINE_STEPS = TrainSettings(epochs=3, batch_size=8, lr=0.05)


def _learner() -> Learner:
    torch.manual_seed(0)
    pixels = Pixels(torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8), torch.arange(24) % 4, (0.5,), (0.3,))
    return plain_learner(build_model("resnet8", num_classes=4, in_channels=1), pixels)


def _begin(learner: Learner, folder: Path, settings: TrainSettings = NINE_STEPS) -> Fitting:
    images = torch.arange(24 * 64).view(24, 1, 8, 8).to(torch.uint8)
    pixels, augmentation = Pixels(images, torch.arange(24) % 4, (0.5,), (0.3,)), Augmentation(padding=1)
    place = folder / "state.pt"
    return Fitting(learner, pixels, settings, augmentation=augmentation, seed=3, checkpoint=place, digest="one")


def _with_a_rare_loss(seen: list[int], first: int, before: float = 0.0) -> Learner:
    """A loss that teaches from the `first` time on that it is asked, and is `before` until then; counts in `seen`."""
    plain = _learner()

    def losses(images: Tensor, target: Any, progress: Progress) -> dict[str, Tensor]:
        seen.append(1)
        task = plain.losses(images, target, progress)["task"]
        return {"task": task, "rare": 0 * task + before if len(seen) < first else 2 * task}

    return dataclasses.replace(plain, losses=losses)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (0.0, r"loss 'extra' is 0 on the first batches \(8 tried\)"),
        (math.nan, "loss 'extra' is nan before step 1"),
        (1.0, r"loss 'extra' sends no gradient to what is trained on the first batches \(8 tried\)"),
    ],
)
def test_a_loss_that_teaches_nothing_stops_the_run(extra: float, said: str, tmp_path: Path) -> None:
    plain, loss = _learner(), torch.tensor(extra, requires_grad=True)
    learner = dataclasses.replace(plain, losses=lambda x, y, p: {**plain.losses(x, y, p), "extra": loss})
    with pytest.raises(UserError, match=said):
        _begin(learner, tmp_path)


def test_a_gradient_that_rounding_alone_makes_is_none(tmp_path: Path) -> None:
    plain = _learner()

    def losses(images: Tensor, target: Any, progress: Progress) -> dict[str, Tensor]:
        task = plain.losses(images, target, progress)["task"]
        return {"task": task, "tiny": 1e-9 * task}

    with pytest.raises(UserError, match="loss 'tiny' sends no gradient to what is trained on the first batches"):
        _begin(dataclasses.replace(plain, losses=losses), tmp_path)


@pytest.mark.parametrize(("first", "asked"), [(1, 1), (2, 2), (8, 8)])
def test_a_loss_may_teach_nothing_on_the_very_first_batches(first: int, asked: int, tmp_path: Path) -> None:
    seen: list[int] = []
    fitting = _begin(_with_a_rare_loss(seen, first), tmp_path)
    assert len(seen) == asked  # where the first batch teaches, it alone is looked at
    assert fitting.step == 0


def test_no_more_batches_are_tried_than_the_schedule_has(tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(UserError, match=r"loss 'rare' is 0 on the first batches \(3 tried\)"):
        _begin(_with_a_rare_loss(seen, 4), tmp_path, dataclasses.replace(NINE_STEPS, epochs=1))
    assert len(seen) == 3


def test_what_is_not_finite_is_refused_at_once(tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(UserError, match="loss 'rare' is inf before step 1"):
        _begin(_with_a_rare_loss(seen, 2, math.inf), tmp_path)
    assert len(seen) == 1


@pytest.mark.parametrize("first", [1, 5])
def test_the_guard_leaves_no_trace_in_statistics_and_random_numbers(first: int, tmp_path: Path) -> None:
    learner = _with_a_rare_loss([], first)
    before, drawn = state_sha256(learner.trained), torch.get_rng_state()
    _begin(learner, tmp_path)
    assert state_sha256(learner.trained) == before
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(("times", "told"), [(500.0, True), (100.0, False)])
def test_a_loss_that_drowns_all_others_is_told(times: float, told: bool, tmp_path: Path) -> None:
    plain = _learner()

    def losses(images: Tensor, target: Any, progress: Progress) -> dict[str, Tensor]:
        task = plain.losses(images, target, progress)["task"]
        return {"task": task, "spatial": times * task}

    norms = _begin(dataclasses.replace(plain, losses=losses), tmp_path).first_norms
    assert norms["spatial"] == pytest.approx(times * norms["task"], rel=1e-4)
    line = f"loss 'spatial' begins with {times:.0f} times the gradient of any other: "
    assert str(drowned(norms)).startswith(line) == told
    assert drowned({"task": 3.0}) is None
    assert drowned({"task": 3.0, "rare": 0.0}) is None


def test_a_rate_that_would_never_arrive_is_refused(tmp_path: Path) -> None:
    _begin(_learner(), tmp_path, dataclasses.replace(NINE_STEPS, lr_warm_up=8))
    with pytest.raises(UserError, match="lr_warm_up: 9 steps, and the training has 9: lower it"):
        _begin(_learner(), tmp_path, dataclasses.replace(NINE_STEPS, lr_warm_up=9))
