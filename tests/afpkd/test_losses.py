"""Each loss against its formula in float64 numpy, written the slow way."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from afpkd.losses import frequency_loss, hierarchical_context_loss, soft_target_loss, token_overlap, warm_up


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_soft_target_loss_is_t_squared_kl() -> None:
    student, teacher, temperature = _random(5, 7), _random(5, 7, seed=1), 4.0
    expected = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (t, s))
        expected += temperature**2 * (p * np.log(p / q)).sum() / 5
    assert float(soft_target_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)


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


def _naive_frequency_loss(
    a: list[Tensor], b: list[Tensor], token: list[Tensor], gate: list[Tensor], omega: Tensor
) -> Tensor:
    """The specification with its T-fold tensors: every token's masked bands, one band at a time."""
    bands = []
    for a_group, b_group, m, g in zip(a, b, token, gate, strict=True):
        for o in range(a_group.shape[2]):
            total = torch.zeros((), dtype=torch.float64)
            for n in range(a_group.shape[0]):
                area = sum(g[n, o, i] * m[n, o, i].sum() for i in range(m.shape[2]))
                for i in range(m.shape[2]):
                    masked = (m[n, o, i] * a_group[n, :, o] - m[n, o, i] * b_group[n, :, o]).abs()
                    total = total + g[n, o, i] * (omega[n, :, None, None] * masked).sum() / (area * a_group.shape[1])
            bands.append(total / a_group.shape[0])
    return torch.stack(bands).mean()


def test_factored_frequency_loss_equals_the_t_fold_one_in_value_and_gradient() -> None:
    shapes = [(2, 3, 1, 2, 2), (2, 3, 3, 2, 2), (2, 3, 3, 4, 4)]  # two scales
    a = [_random(*s, seed=k) for k, s in enumerate(shapes)]
    b = [_random(*s, seed=10 + k).requires_grad_() for k, s in enumerate(shapes)]
    tokens = [torch.sigmoid(_random(2, s[2], 4, *s[3:], seed=20 + k)) for k, s in enumerate(shapes)]
    gates = [torch.softmax(_random(2, s[2], 4, seed=30 + k), dim=-1) for k, s in enumerate(shapes)]
    omega = torch.rand(2, 3, dtype=torch.float64) + 0.5
    naive = _naive_frequency_loss(a, b, tokens, gates, omega)
    masks = [torch.einsum("not,nothw->nohw", g, m) for g, m in zip(gates, tokens, strict=True)]
    ours = frequency_loss([x - y for x, y in zip(a, b, strict=True)], masks, omega)
    assert float(ours.detach()) == pytest.approx(float(naive.detach()), rel=1e-12)
    for theirs, mine in zip(torch.autograd.grad(naive, b), torch.autograd.grad(ours, b), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: soft_target_loss(x.flatten(1), _random(2, 48, seed=5), 4.0),
        lambda x: hierarchical_context_loss(x, _random(2, 3, 4, 4, seed=5)),
        lambda x: token_overlap(torch.sigmoid(x[:, None])).sum(),
        lambda x: frequency_loss([x[:, :, None]], [torch.full((2, 1, 4, 4), 0.3).double()], torch.ones(2, 3).double()),
    ],
)
def test_gradients_are_right(loss: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, (_random(2, 3, 4, 4).requires_grad_(),))


def test_warm_up_is_a_fraction_of_the_schedule() -> None:
    assert [warm_up(p, 0.25) for p in (0.0, 0.125, 0.25, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert warm_up(0.0, 0.0) == 1.0
