import warnings

import numpy as np
import pytest
import pywt
import torch

from afpkd.wavelet import band_names, haar_dwt, haar_idwt, num_scales

SIZES = [(32, 32), (8, 8), (7, 7), (28, 28), (25, 19), (5, 12)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_bands_equal_pywavelets(size: tuple[int, int], scales: int) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    low, *details = haar_dwt(x, scales)
    with warnings.catch_warnings():  # PyWavelets' advice on boundary effects; Haar has none
        warnings.filterwarnings("ignore", "Level value of", UserWarning)
        reference = pywt.wavedec2(x.numpy(), "haar", mode="zero", level=scales, axes=(-2, -1))
    np.testing.assert_allclose(low[:, :, 0], reference[0], atol=1e-12)
    assert len(details) == len(reference) - 1
    for ours, theirs in zip(details, reference[1:], strict=True):
        np.testing.assert_allclose(ours, np.stack(theirs, axis=2), atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_perfect_reconstruction_and_energy(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    groups = haar_dwt(x, 3)
    assert (haar_idwt(groups, size) - x).abs().max() < 1e-5
    assert sum(float(g.square().sum()) for g in groups) == pytest.approx(float(x.square().sum()), rel=1e-5)


def test_a_constant_map_has_no_detail() -> None:
    low, *details = haar_dwt(torch.full((1, 1, 16, 16), 3.0), 3)
    assert torch.equal(low, torch.full_like(low, 3.0 * 2**3))
    assert all(bool((d == 0).all()) for d in details)


def test_gradient_is_the_inverse_transform() -> None:
    """Orthonormal: the transposed transform, which autograd applies, is the inverse."""
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    groups = haar_dwt(x, 2)
    torch.autograd.backward(groups, [g.detach() for g in groups])
    assert x.grad is not None
    assert torch.allclose(x.grad, x.detach(), atol=1e-6)


def test_scales_of_the_literature_sizes() -> None:
    assert [num_scales((h, h)) for h in (64, 32, 28, 16, 14, 8, 7, 4, 2, 1)] == [3, 3, 3, 3, 2, 2, 1, 1, 0, 0]
    assert num_scales((32, 32), most=1) == 1


def test_band_names_run_from_coarse_to_fine() -> None:
    assert band_names(2) == ["low", "row2", "column2", "diagonal2", "row1", "column1", "diagonal1"]
