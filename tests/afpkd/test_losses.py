"""Each loss of logits and feature maps against its formula in float64 numpy, written the slow way."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from afpkd.losses import (
    class_map_loss,
    decoupled_losses,
    hierarchical_context_loss,
    in_spreads,
    soft_target_loss,
    standardised,
    token_overlap,
    warm_up,
)

Array = NDArray[np.float64]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _softmax(row: Array, temperature: float) -> Array:
    powers = np.exp(row / temperature)
    return np.asarray(powers / powers.sum())


def _kl(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def test_soft_target_loss_is_t_squared_kl() -> None:
    student, teacher, temperature = _random(5, 7), _random(5, 7, seed=1), 4.0
    expected = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        expected += temperature**2 * _kl(_softmax(t, temperature), _softmax(s, temperature)) / 5
    assert float(soft_target_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)


def test_soft_target_loss_of_equal_logits_is_zero_and_of_any_others_is_not() -> None:
    logits = _random(4, 6)
    assert float(soft_target_loss(logits, logits + 3.0, 4.0)) == pytest.approx(0.0, abs=1e-14)  # softmax ignores shifts
    assert float(soft_target_loss(2 * logits, logits, 4.0)) > 1e-3


def test_standardised_logits_have_mean_zero_and_sample_deviation_one_a_row() -> None:
    logits = 5 * _random(4, 9) + 2
    for found, row in zip(standardised(logits).numpy(), logits.numpy(), strict=True):
        mean = sum(row) / 9
        deviation = (sum((value - mean) ** 2 for value in row) / 8) ** 0.5
        np.testing.assert_allclose(found, [(value - mean) / (deviation + 1e-7) for value in row], rtol=1e-12)


def test_standardised_logits_do_not_know_their_scale_and_shift() -> None:
    logits = _random(3, 8)
    moved = logits * torch.tensor([[0.5], [3.0], [40.0]]).double() + torch.tensor([[-7.0], [0.0], [9.0]]).double()
    torch.testing.assert_close(standardised(moved), standardised(logits), rtol=1e-6, atol=1e-6)
    assert torch.equal(standardised(torch.full((2, 5), 3.0)), torch.zeros(2, 5))  # no range: no division by zero


def _parts(row: Array, target: int, temperature: float) -> tuple[Array, Array]:
    """(b_t, b_not-t) and the distribution over the other classes: DKD, equations 1 to 3."""
    p = _softmax(row, temperature)
    others = np.delete(row, target)
    return np.array([p[target], 1 - p[target]]), _softmax(others, temperature)


def test_decoupled_losses_are_equations_5_to_7() -> None:
    student, teacher, target, temperature = _random(5, 6), _random(5, 6, seed=1), [0, 5, 2, 2, 4], 4.0
    tckd = nckd = 0.0
    for s, t, label in zip(student.numpy(), teacher.numpy(), target, strict=True):
        (s_binary, s_others), (t_binary, t_others) = (_parts(row, label, temperature) for row in (s, t))
        tckd += temperature**2 * _kl(t_binary, s_binary) / 5
        nckd += temperature**2 * _kl(t_others, s_others) / 5
    found = decoupled_losses(student, teacher, torch.tensor(target), temperature)
    assert [float(part) for part in found] == pytest.approx([tckd, nckd], rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_kd_loss_is_tckd_plus_nckd_weighted_by_what_the_teacher_leaves_the_other_classes(
    temperature: float,
) -> None:
    student, teacher, target = 3 * _random(6, 5), 3 * _random(6, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0])
    for n in range(6):  # a sample at a time: the weight 1 - p_t is a sample's own
        one = slice(n, n + 1)
        tckd, nckd = decoupled_losses(student[one], teacher[one], target[one], temperature)
        p_target = _softmax(teacher[n].numpy(), temperature)[target[n]]
        expected = float(soft_target_loss(student[one], teacher[one], temperature))
        assert float(tckd + (1 - p_target) * nckd) == pytest.approx(expected, rel=1e-10)


def test_decoupled_losses_of_a_teacher_that_is_sure_stay_finite() -> None:
    student = _random(2, 5).float().requires_grad_()
    teacher = torch.zeros(2, 5)
    teacher[:, 0] = 200.0  # exp(-200 / T) is 0 in float32 at T = 1
    for part in decoupled_losses(student, teacher, torch.tensor([0, 3]), 1.0):
        gradient = torch.autograd.grad(part, student, retain_graph=True)[0]
        assert bool(part.isfinite())
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("normalise", [False, True])
def test_class_map_loss_is_the_mean_squared_error_of_pooled_maps(size: int, *, normalise: bool) -> None:
    student, teacher = _random(2, 3, 4, 4), _random(2, 3, 4, 4, seed=1)
    squares = []
    for n, k in itertools.product(range(2), range(3)):
        pooled = []
        for maps in (student, teacher):
            step = 4 // size
            blocks = maps[n, k].numpy().reshape(size, step, size, step).mean((1, 3))
            pooled.append(blocks / np.sqrt((blocks**2).sum()) if normalise else blocks)
        squares += list(((pooled[0] - pooled[1]) ** 2).flat)
    found = float(class_map_loss(student, teacher, size, normalise=normalise))
    assert found == pytest.approx(float(np.mean(squares)), rel=1e-12)


def test_class_map_loss_compares_maps_of_unlike_sizes() -> None:
    student = _random(2, 3, 4, 4)
    teacher = student.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(class_map_loss(student, teacher, 2, normalise=False)) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize(("side", "pooled"), [(8, (4, 2, 1)), (4, (2, 1)), (2, (1,)), (1, ())])
def test_hierarchical_context_loss_is_a_weighted_mean_over_poolings(side: int, pooled: tuple[int, ...]) -> None:
    student, teacher = _random(3, 2, side, side), _random(3, 2, side, side, seed=1)
    terms, weights = [np.mean((student.numpy() - teacher.numpy()) ** 2)], [1.0]
    for k, size in enumerate(pooled, 1):
        s, t = (
            x.numpy().reshape(3, 2, size, side // size, size, side // size).mean((3, 5)) for x in (student, teacher)
        )
        terms.append(np.mean((s - t) ** 2))
        weights.append(0.5**k)
    expected = np.dot(terms, weights) / sum(weights)
    assert float(hierarchical_context_loss(student, teacher)) == pytest.approx(expected, rel=1e-12)


def test_maps_in_spreads_have_the_teachers_standard_deviation_as_their_unit() -> None:
    student, teacher = _random(2, 3, 4, 4), 300 * _random(2, 3, 4, 4, seed=5) - 70
    ours, theirs = in_spreads(student, teacher)
    spread = np.std(teacher.numpy(), ddof=1)
    assert theirs.numpy() == pytest.approx(teacher.numpy() / spread, rel=1e-6)
    assert ours.numpy() == pytest.approx(student.numpy() / spread, rel=1e-6)
    assert ours.dtype == torch.float64
    assert all(each.dtype == torch.bfloat16 for each in in_spreads(student.bfloat16(), teacher.bfloat16()))
    flat = torch.full((1, 2, 1, 1), 3.0)
    assert all(bool(each.isfinite().all()) for each in in_spreads(flat, flat))


def test_token_overlap_is_the_mean_soft_jaccard_of_pairs() -> None:
    masks = torch.sigmoid(_random(2, 3, 4, 5, 6))  # N, O, T, h, w
    found = token_overlap(masks)
    assert found.shape == (3,)
    for o in range(3):
        pairs = []
        for n, (i, j) in itertools.product(range(2), itertools.permutations(range(4), 2)):
            a, b = masks[n, o, i].numpy(), masks[n, o, j].numpy()
            pairs.append((a * b).sum() / ((a * a).sum() + (b * b).sum() - (a * b).sum()))
        assert float(found[o]) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_token_overlap_of_one_token_is_zero_and_of_equal_tokens_is_one() -> None:
    one = torch.rand(2, 3, 1, 4, 4)
    assert torch.equal(token_overlap(one), torch.zeros(3))
    assert torch.allclose(token_overlap(one.expand(2, 3, 5, 4, 4)), torch.ones(3))


def test_token_overlap_of_masks_that_share_no_pixel_is_zero() -> None:
    masks = torch.zeros(1, 1, 2, 2, 2)
    masks[0, 0, 0, 0], masks[0, 0, 1, 1] = 1.0, 1.0
    assert float(token_overlap(masks)) == 0.0
    assert float(token_overlap(torch.zeros(1, 1, 2, 2, 2))) == 0.0  # empty masks: no division by zero


_TARGET = torch.tensor([3, 0])
LOSSES: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "soft_target_loss": lambda x: soft_target_loss(x.flatten(1), _random(2, 48, seed=5), 4.0),
    "standardised": lambda x: standardised(x.flatten(1)),
    "decoupled_losses": lambda x: decoupled_losses(x.flatten(1), _random(2, 48, seed=5), _TARGET, 4.0),
    "class_map_loss": lambda x: class_map_loss(x, _random(2, 3, 4, 4, seed=5), 2, normalise=False),
    "class_map_loss, normalised": lambda x: class_map_loss(x, _random(2, 3, 4, 4, seed=5), 2, normalise=True),
    "in_spreads": lambda x: in_spreads(x, _random(2, 3, 4, 4, seed=5)),
    "hierarchical_context_loss": lambda x: hierarchical_context_loss(x, _random(2, 3, 4, 4, seed=5)),
    "token_overlap": lambda x: token_overlap(torch.sigmoid(x[:, None])),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], (_random(2, 3, 4, 4).requires_grad_(),))


def test_warm_up_is_a_fraction_of_the_schedule() -> None:
    assert [warm_up(p, 0.25) for p in (0.0, 0.125, 0.25, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert warm_up(0.0, 0.0) == 1.0
