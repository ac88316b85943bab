"""The parts of the method against their equations: position weight, prompts, their acceptance."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from afpkd.learners import prompt_learner, prompted
from afpkd.losses import token_overlap
from afpkd.models.outputs import Shapes
from afpkd.position import PositionWeight, position_relation
from afpkd.prompts import BandPrompts, FrequencyPrompts, Refined, moments
from afpkd.wavelet import haar_dwt
from tests.afpkd.conftest import Toy, drawn


def test_position_relation_is_softmax_of_psi_f_transposed() -> None:
    feature, following = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(2))
    found = position_relation(feature, following).numpy()
    for n in range(2):
        scores = following[n].flatten(1).numpy() @ feature[n].flatten(1).numpy().T / 4.0
        expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(found[n], expected, atol=1e-12)


def test_position_relation_of_products_beyond_float16_is_that_of_float32() -> None:
    feature, following = 300 * torch.rand(2, 6, 16, 16), 300 * torch.rand(2, 6, 8, 8)
    assert float(following[0, 0].square().sum()) > torch.finfo(torch.float16).max
    with torch.autocast("cpu", dtype=torch.float16):
        found = position_relation(feature.half(), following.half())
    expected = position_relation(feature.half().float(), following.half().float())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("united", [True, False])
def test_position_weight_has_mean_one_and_looks_one_level_deeper(*, united: bool) -> None:
    torch.manual_seed(0)
    prompts = FrequencyPrompts(Shapes([8, 16], [(8, 8), (4, 4)], 16, 5), united=united)
    drawn(prompts, std=1.0)
    feature, deeper = torch.randn(3, 8, 8, 8), torch.randn(3, 16, 4, 4)
    omega = prompts.position_weight(0, [feature, deeper])
    assert omega.shape == (3, 8)
    torch.testing.assert_close(omega.mean(dim=1), torch.ones(3))
    assert not torch.allclose(omega, prompts.position_weight(0, [feature, 5 * deeper]))
    assert not torch.allclose(omega, prompts.position_weight(0, [5 * feature, deeper]))


def test_the_position_weight_as_written_hardly_varies_between_channels_where_the_choosing_one_does() -> None:
    spread = {}
    for united in (True, False):
        torch.manual_seed(0)
        prompts = FrequencyPrompts(Shapes([32, 32], [(8, 8), (4, 4)], 32, 5), united=united)
        features = [torch.randn(4, 32, 8, 8), torch.randn(4, 32, 4, 4)]
        gate = prompts.positions["0"].gate
        assert isinstance(gate, nn.Module)
        drawn(gate, std=0.5)
        with torch.no_grad():
            spread[united] = float(prompts.position_weight(0, features).std(dim=1).mean())
    assert spread[True] > 0.1
    assert spread[False] < 0.03


@pytest.mark.parametrize("channels", [32, 1024])
def test_relations_are_standardised_however_many_channels_there_are(channels: int) -> None:
    torch.manual_seed(0)
    position = PositionWeight(channels, 8, standardise=True)
    drawn(position.psi, std=0.5)
    seen: list[Tensor] = []
    position.gate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    position(torch.randn(2, channels, 8, 8), torch.randn(2, 8, 4, 4))
    assert float(seen[0].detach().std(dim=-1, correction=0).min()) > 0.8


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize("united", [True, False])
def test_the_pixel_mask_is_its_equation(*, united: bool) -> None:
    torch.manual_seed(0)
    group = BandPrompts(3, 4, 2, united=united, gate=True).double()
    drawn(group, std=1.0)
    bands = haar_dwt(torch.randn(5, 4, 8, 8, dtype=torch.float64), 1)[1]
    group.calibrate([moments(bands)])
    marked = group(bands)
    state = {name: tensor.detach().numpy() for name, tensor in group.state_dict().items()}
    for n, o in np.ndindex(5, 3):
        band = bands[n, :, o].numpy()  # C, h, w
        amplitude = bands[:, :, o].numpy().std(ddof=1) if united else 1.0
        logits = np.einsum("tc,chw->thw", state["prompts"][o], band) / math.sqrt(4) / amplitude
        offset = state["gate_weight"][o] @ np.abs(band).mean((1, 2)) / amplitude + state["gate_bias"][o]
        if united:
            tokens = _sigmoid(logits + offset[:, None, None])
            pixels = 1 - (1 - tokens[0]) * (1 - tokens[1])
        else:
            tokens = _sigmoid(logits)
            gates = np.exp(offset) / np.exp(offset).sum()
            pixels = gates[0] * tokens[0] + gates[1] * tokens[1]
        np.testing.assert_allclose(marked.tokens[n, o].detach(), tokens, atol=1e-6)
        np.testing.assert_allclose(marked.pixels[n, o].detach(), pixels, atol=1e-6)


def test_a_networks_width_makes_the_gate_no_faster() -> None:
    """Adam's first step moves every weight by the learning rate: a sum over 512 channels would leave no pixel."""
    left = {}
    torch.manual_seed(0)
    narrow = torch.rand(4, 64, 1, 6, 6) - 0.5
    for copies in (1, 8, 32):
        bands = narrow.repeat(1, copies, 1, 1, 1)
        group = BandPrompts(1, 64 * copies, 2, united=True, gate=True)
        nn.init.zeros_(group.prompts)
        group.calibrate([moments(bands)])
        optimizer = torch.optim.Adam(group.parameters(), lr=0.03)
        for _ in range(2):
            optimizer.zero_grad()
            group(bands).pixels.mean().backward()
            optimizer.step()
        left[copies] = float(group(bands).pixels.detach().mean())
    assert left[1] > 0.05
    assert left == pytest.approx(dict.fromkeys(left, left[1]), rel=0.15)  # the pixels' own logits move, too


def test_calibrated_united_masks_do_not_know_the_loudness_of_their_bands() -> None:
    torch.manual_seed(0)
    bands, louder = torch.randn(4, 6, 3, 5, 5), torch.tensor([0.1, 3.0, 50.0])[:, None, None]
    for united in (True, False):
        group = BandPrompts(3, 6, 2, united=united, gate=True)
        drawn(group, std=1.0)
        masks = []
        for each in (bands, louder * bands):
            group.calibrate([moments(each)])
            masks.append(group(each).pixels)
        assert torch.allclose(masks[0], masks[1], atol=1e-5) == united


def test_without_a_gate_the_offset_is_the_same_for_every_image() -> None:
    torch.manual_seed(0)
    for united in (True, False):
        group = BandPrompts(1, 6, 2, united=united, gate=False)
        assert group.gate_weight is None
        drawn(group, std=1.0)
        image = torch.randn(1, 6, 1, 5, 5)
        quiet = image.clone()
        quiet[..., 1:, :] = 0.0  # another band energy; the first row is the same
        torch.testing.assert_close(group(image).pixels[..., 0, :], group(quiet).pixels[..., 0, :])


def _refined(prompts: FrequencyPrompts, toy: Toy) -> tuple[list[tuple[Tensor, Tensor]], list[Refined]]:
    """(refined, clean) feature of each banded level, and what the levels report."""
    reports: list[Refined] = []
    features = toy.teacher(toy.images).features
    with torch.no_grad():
        refine = prompts.refiner(features, reports)
        return [(refine(level, features[level]), features[level]) for level in prompts.banded_levels()], reports


@pytest.mark.parametrize("tokens", [1, 2, 4, 6])
def test_averaged_zero_prompts_leave_the_teacher_as_it_is(tokens: int, toy: Toy) -> None:
    prompts = FrequencyPrompts(toy.shapes, tokens=tokens, united=False)
    for parameter in prompts.parameters():
        nn.init.zeros_(parameter)
    pairs, reports = _refined(prompts, toy)
    assert len(pairs) == len(reports) == 2
    for (refined, clean), report in zip(pairs, reports, strict=True):
        torch.testing.assert_close(refined, clean, rtol=1e-5, atol=1e-5)
        assert float(report.overlap) == pytest.approx(0.0 if tokens == 1 else 1.0)


def test_united_prompts_start_near_the_teacher(toy: Toy) -> None:
    torch.manual_seed(0)
    prompts = FrequencyPrompts(toy.shapes)
    assert prompts.united
    prompts.calibrate([toy.teacher(toy.images).features])
    for refined, clean in _refined(prompts, toy)[0]:
        kept = float((refined * clean).sum() / clean.square().sum())
        assert 0.8 < kept < 1.0
        assert float((refined - kept * clean).norm() / clean.norm()) < 0.15


@pytest.mark.parametrize("united", [True, False])
def test_prompts_act_inside_the_teacher_and_learn_while_it_stays_frozen(toy: Toy, *, united: bool) -> None:
    torch.manual_seed(0)
    prompts = FrequencyPrompts(toy.shapes, tokens=2, united=united)
    reports: list[Refined] = []
    clean = toy.teacher(toy.images)
    refined = toy.teacher.model(toy.images, prompts.refiner(clean.features, reports))
    assert len(reports) == len(prompts.banded_levels()) == 2
    assert not torch.equal(refined.logits, clean.logits)
    assert torch.allclose(refined.logits, clean.logits, atol=0.5 * float(clean.logits.abs().max()))
    gradients = torch.autograd.grad(refined.logits.square().sum(), list(prompts.parameters()), allow_unused=True)
    assert [n for (n, _), g in zip(prompts.named_parameters(), gradients, strict=True) if g is None] == []
    toy.teacher.assert_unchanged()


def test_averaged_tokens_can_be_hollow_and_united_ones_cannot() -> None:
    """FreeKD's objective rewards P_2 = -P_1: overlap falls, yet w = 1/2 at every pixel, whatever the bands."""
    torch.manual_seed(0)
    for scale in (0.1, 1.0, 30.0):
        bands = scale * torch.randn(3, 8, 3, 6, 6, dtype=torch.float64)
        overlaps = {}
        for united in (True, False):
            group = BandPrompts(3, 8, 2, united=united, gate=False).double()
            group.calibrate([moments(bands)])
            with torch.no_grad():
                group.prompts.normal_(std=3.0)
                for sign in (1.0, -1.0):
                    group.prompts[:, 1] = sign * group.prompts[:, 0]
                    marked = group(bands)
                    overlaps[united, sign] = token_overlap(marked.tokens).mean()
            if united:
                assert float(marked.pixels.std(dim=(-2, -1)).min()) > 1e-3
            else:
                torch.testing.assert_close(marked.pixels, torch.full_like(marked.pixels, 0.5))
        assert overlaps[False, -1.0] < overlaps[False, 1.0] == pytest.approx(1.0)


def test_the_losses_of_phase_one_are_their_equations(toy: Toy) -> None:
    torch.manual_seed(0)
    prompts = FrequencyPrompts(toy.shapes)
    drawn(prompts, std=0.5)
    images, target = toy.images[:6], toy.pixels.labels[:6]
    clean = toy.teacher(images)
    with torch.no_grad():
        outputs, reports = prompted(prompts, toy.teacher, images, clean)
    areas = [float(report.areas.mean()) for report in reports]
    budget = (areas[0] + areas[1]) / 2  # one level is over it
    found, of_task = (
        {name: float(loss.detach()) for name, loss in learner.losses(images, target, 0.0).items()}
        for learner in (
            prompt_learner(
                prompts, toy.teacher, toy.pixels, objective=kind, overlap_weight=0.7, area=budget, area_weight=30.0
            )
            for kind in ("choose", "task")
        )
    )
    theirs, ours = (torch.log_softmax(answer.logits.double() / 4, dim=1) for answer in (clean, outputs))
    divergence = float((theirs.exp() * (theirs - ours)).sum(dim=1).mean())
    assert divergence > 1e-3
    assert abs(areas[0] - areas[1]) > 0.01
    overlap = pytest.approx(0.7 * float(torch.stack([report.overlap for report in reports]).mean()), rel=1e-4)
    assert found == {
        "teacher": pytest.approx(4**2 * divergence, rel=1e-4),
        "area": pytest.approx(30 * (max(areas) - budget) ** 2 / 2, rel=1e-3),
        "overlap": overlap,
    }
    assert of_task == {
        "task": pytest.approx(float(F.cross_entropy(outputs.logits, target)), rel=1e-5),
        "overlap": overlap,
    }
