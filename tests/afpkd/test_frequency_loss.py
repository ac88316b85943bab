"""AFPKD's frequency loss against its equation and against the specification with its T-fold tensors."""

from typing import Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from afpkd.losses import frequency_loss

Normalise = Literal["level", "band", "none"]
NORMALISE: tuple[Normalise, ...] = get_args(Normalise)
IMAGES, CHANNELS, TOKENS = 2, 3, 4
GROUPS = [(1, 2, 2), (3, 2, 2), (3, 4, 4)]  # O, h, w of each group of a 8x8 map's two scales


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _bands(seed: int) -> list[Tensor]:
    return [_random(IMAGES, CHANNELS, *group, seed=seed + k) for k, group in enumerate(GROUPS)]


def _masks() -> list[Tensor]:
    return [torch.sigmoid(_random(IMAGES, *group, seed=20 + k)) for k, group in enumerate(GROUPS)]


def _omega() -> Tensor:
    return torch.sigmoid(_random(IMAGES, CHANNELS, seed=40)) + 0.5


def test_a_loss_in_float16_is_not_infinite() -> None:
    """256 channels that are 500 apart: a detector's neck on a GPU without bf16; their sum leaves float16's range."""
    apart = [torch.full((2, 256, 1, 4, 4), 500.0, dtype=torch.float16)]
    with torch.autocast("cpu", dtype=torch.float16):
        loss = frequency_loss(apart, [torch.ones(2, 1, 4, 4)], torch.ones(2, 256), normalise="level")
    assert float(loss) == pytest.approx(500, rel=1e-3)


def _combined(distances: Tensor, areas: Tensor, normalise: Normalise) -> Tensor:
    """Mean over images of the distances e and areas A, N, bands, as the docstring of the loss has it."""
    total = torch.zeros((), dtype=torch.float64)
    for e, area in zip(distances, areas, strict=True):
        if normalise == "level":
            total = total + sum(e) / sum(area)
        elif normalise == "band":
            total = total + sum(e[b] / area[b] for b in range(len(e))) / len(e)
        else:
            total = total + sum(e) / len(e)
    return total / len(distances)


def _t_fold_loss(
    a: list[Tensor], b: list[Tensor], tokens: list[Tensor], gates: list[Tensor], omega: Tensor, normalise: Normalise
) -> Tensor:
    """Every token's own masked copy of the bands, sum_i g_i |m_i a - m_i b|: an image, a band, a token at a time."""
    distances, areas = [], []
    for n in range(IMAGES):
        of_image: list[tuple[Tensor, Tensor]] = []
        for a_group, b_group, m, g in zip(a, b, tokens, gates, strict=True):
            for o in range(a_group.shape[2]):
                e = area = torch.zeros((), dtype=torch.float64)
                for i in range(m.shape[2]):
                    copies = (m[n, o, i] * a_group[n, :, o], m[n, o, i] * b_group[n, :, o])
                    e = e + g[n, o, i] * (omega[n, :, None, None] * (copies[0] - copies[1]).abs()).mean()
                    area = area + g[n, o, i] * m[n, o, i].mean()
                of_image.append((e, area))
        distances.append(torch.stack([e for e, _ in of_image]))
        areas.append(torch.stack([area for _, area in of_image]))
    return _combined(torch.stack(distances), torch.stack(areas), normalise)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_the_factored_loss_equals_the_t_fold_one_in_value_and_gradient(normalise: Normalise) -> None:
    a, b, omega = _bands(0), [band.requires_grad_() for band in _bands(10)], _omega()
    tokens = [torch.sigmoid(_random(IMAGES, o, TOKENS, h, w, seed=20 + k)) for k, (o, h, w) in enumerate(GROUPS)]
    gates = [torch.softmax(_random(IMAGES, o, TOKENS, seed=30 + k), dim=-1) for k, (o, _, _) in enumerate(GROUPS)]
    naive = _t_fold_loss(a, b, tokens, gates, omega, normalise)
    masks = [torch.einsum("not,nothw->nohw", g, m) for g, m in zip(gates, tokens, strict=True)]
    ours = frequency_loss([x - y for x, y in zip(a, b, strict=True)], masks, omega, normalise=normalise)
    assert float(ours.detach()) == pytest.approx(float(naive.detach()), rel=1e-12)
    for theirs, mine in zip(torch.autograd.grad(naive, b), torch.autograd.grad(ours, b), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_the_loss_is_its_equation(normalise: Normalise) -> None:
    difference, masks, omega = _bands(0), _masks(), _omega()
    total = 0.0
    for n in range(IMAGES):
        e, area = [], []
        for group, mask in zip(difference, masks, strict=True):
            for o in range(group.shape[2]):
                d, w = np.abs(group[n, :, o].numpy()), mask[n, o].numpy()
                terms = [float(omega[n, c]) * w[p] * d[c][p] for c in range(CHANNELS) for p in np.ndindex(w.shape)]
                e.append(sum(terms) / len(terms))
                area.append(w.sum() / w.size)
        found = {"level": sum(e) / sum(area), "band": np.mean(np.divide(e, area)), "none": np.mean(e)}
        total += float(found[normalise]) / IMAGES
    ours = float(frequency_loss(difference, masks, omega, normalise=normalise))
    assert ours == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_gradients_are_right(normalise: Normalise) -> None:
    def loss(low: Tensor, details: Tensor) -> Tensor:
        return frequency_loss([low, details], masks, omega, normalise=normalise)

    masks, omega = _masks()[:2], _omega()
    bands = _bands(0)[:2]
    assert min(float(band.abs().min()) for band in bands) > 1e-3  # away from the kink of |x|
    assert torch.autograd.gradcheck(loss, tuple(band.requires_grad_() for band in bands))


def _loss(masks: list[Tensor], normalise: Normalise) -> float:
    low, *details = _bands(0)
    return float(frequency_loss([4 * low, *details], masks, _omega(), normalise=normalise))


def test_each_way_to_normalise_says_what_a_paler_mask_does() -> None:
    masks = _masks()
    paler = [mask / 4 for mask in masks]
    one_paler = [masks[0] / 4, *masks[1:]]
    assert _loss(paler, "none") == pytest.approx(_loss(masks, "none") / 4)
    for normalise in ("level", "band"):  # what is kept is compared, however pale the mask
        assert _loss(paler, normalise) == pytest.approx(_loss(masks, normalise))
    assert _loss(one_paler, "band") == pytest.approx(_loss(masks, "band"))  # every band counts the same
    assert abs(_loss(one_paler, "level") / _loss(masks, "level") - 1) > 0.1  # a band counts by its area


@pytest.mark.parametrize("normalise", NORMALISE)
def test_what_the_masks_leave_out_does_not_count(normalise: Normalise) -> None:
    difference, masks, omega = _bands(0), _masks(), _omega()
    for mask in masks:
        mask[..., 0] = 0.0
    moved = [band.clone() for band in difference]
    for band in moved:
        band[..., 0] += 100.0
    losses = [float(frequency_loss(bands, masks, omega, normalise=normalise)) for bands in (difference, moved)]
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize("normalise", NORMALISE)
def test_an_empty_mask_gives_no_loss_rather_than_nan(normalise: Normalise) -> None:
    empty = [torch.zeros_like(mask) for mask in _masks()]
    assert _loss(empty, normalise) == 0.0
