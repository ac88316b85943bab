"""The parts of the method against their equations: position weight, prompts, their acceptance."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afpkd import learners
from afpkd.acceptance import banded, constant, mask_statistics, phase_one_report, shuffled, why_not_accepted
from afpkd.data.batches import Pixels
from afpkd.evaluate import in_passes, top1
from afpkd.learners import FrozenTeacher
from afpkd.losses import token_overlap
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Shapes
from afpkd.position import position_relation
from afpkd.prompts import BandPrompts, FrequencyPrompts, Refined, moments
from afpkd.record import Json
from afpkd.wavelet import haar_dwt


class Toy(NamedTuple):
    """A small frozen teacher and its images of 12 pixels: maps of 12, 6 and 3 pixels, the last without bands."""

    teacher: FrozenTeacher
    shapes: Shapes
    pixels: Pixels

    @property
    def images(self) -> Tensor:
        """Normalised images N, 1, 12, 12."""
        return self.pixels.normalised(self.pixels.images)


def _toy(seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    model = build_model("resnet20", num_classes=5, in_channels=1)
    pixels = Pixels(torch.randint(0, 256, (16, 1, 12, 12), dtype=torch.uint8), torch.arange(16) % 5, (0.5,), (0.3,))
    with torch.no_grad():
        for _ in range(20):  # the running statistics become those of the images
            model(pixels.normalised(pixels.images))
    return Toy(FrozenTeacher(model), probe_shapes(model, in_channels=1, image_size=(12, 12)), pixels)


@pytest.fixture(name="toy", scope="module")
def _toy_fixture() -> Toy:
    return _toy()


def _set(module: nn.Module, *, std: float) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)


def test_position_relation_is_softmax_of_psi_f_transposed() -> None:
    feature, following = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(2))
    found = position_relation(feature, following).numpy()
    for n in range(2):
        scores = following[n].flatten(1).numpy() @ feature[n].flatten(1).numpy().T / 4.0
        expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(found[n], expected, atol=1e-12)


@pytest.mark.parametrize("united", [True, False])
def test_position_weight_has_mean_one_and_looks_one_level_deeper(*, united: bool) -> None:
    torch.manual_seed(0)
    prompts = FrequencyPrompts(Shapes([8, 16], [(8, 8), (4, 4)], 16, 5), united=united)
    _set(prompts, std=1.0)
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
        _set(gate, std=0.5)
        with torch.no_grad():
            spread[united] = float(prompts.position_weight(0, features).std(dim=1).mean())
    assert spread[True] > 0.1
    assert spread[False] < 0.03


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize("united", [True, False])
def test_the_pixel_mask_is_its_equation(*, united: bool) -> None:
    torch.manual_seed(0)
    group = BandPrompts(3, 4, 2, united=united, gate=True).double()
    _set(group, std=1.0)
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


def test_calibrated_united_masks_do_not_know_the_loudness_of_their_bands() -> None:
    torch.manual_seed(0)
    bands, louder = torch.randn(4, 6, 3, 5, 5), torch.tensor([0.1, 3.0, 50.0])[:, None, None]
    for united in (True, False):
        group = BandPrompts(3, 6, 2, united=united, gate=True)
        _set(group, std=1.0)
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
        _set(group, std=1.0)
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


def test_mask_statistics_of_zero_prompts_have_no_spread(toy: Toy) -> None:
    for united, mean in ((True, 0.75), (False, 0.5)):  # two tokens of 1/2 each, united: 1 - 1/2 * 1/2
        prompts = FrequencyPrompts(toy.shapes, tokens=2, united=united)
        for parameter in prompts.parameters():
            nn.init.zeros_(parameter)
        rows = mask_statistics(prompts, toy.teacher(toy.images).features)
        assert [row["band"] for row in rows if row["level"] == 1] == ["low", "row1", "column1", "diagonal1"]
        assert all(row["mean"] == pytest.approx(mean) for row in rows)
        assert all(row["spread"] == pytest.approx(0.0, abs=1e-6) for row in rows)
        _set(prompts, std=1.0)
        assert all(row["spread"] > 0.01 for row in mask_statistics(prompts, toy.teacher(toy.images).features))


def test_shuffled_masks_keep_their_area_and_averaged_ones_have_no_spread() -> None:
    torch.manual_seed(0)
    masks = [torch.rand(2, 1, 3, 3), torch.rand(2, 3, 3, 3), torch.rand(2, 3, 6, 6)]
    moved, even = shuffled(masks), constant(masks)
    assert [mask.shape for mask in moved] == [mask.shape for mask in even] == [mask.shape for mask in masks]
    values = [torch.cat([mask.flatten(1) for mask in each], dim=1) for each in (masks, moved, even)]
    assert torch.equal(values[0].sort(dim=1).values, values[1].sort(dim=1).values)
    assert not torch.equal(values[0], values[1])
    assert all(torch.equal(a, b) for a, b in zip(shuffled(masks), moved, strict=True))  # one fixed order
    assert all(torch.equal(mask, mask[..., :1, :1].expand_as(mask)) for mask in even)
    torch.testing.assert_close(values[2].mean(dim=1), values[0].mean(dim=1))
    for mask, level_band in zip(masks, banded(masks), strict=True):
        torch.testing.assert_close(level_band[0, :, 0, 0], torch.stack([band.mean() for band in mask[0]]))
        assert torch.equal(level_band, level_band[..., :1, :1].expand_as(mask))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("united", "zero"), [(True, False), (True, True), (False, False), (False, True)])
def test_prompts_that_have_learned_nothing_are_not_accepted(seed: int, *, united: bool, zero: bool) -> None:
    toy = _toy(seed)
    prompts = FrequencyPrompts(toy.shapes, united=united)
    prompts.calibrate([toy.teacher(toy.images).features])
    for parameter in prompts.parameters() if zero else ():
        nn.init.zeros_(parameter)
    report = phase_one_report(prompts, toy.teacher, toy.pixels.normalised(toy.pixels.images))
    assert why_not_accepted(report) is not None


@contextmanager
def _batches(toy: Toy) -> Iterator[list[int]]:
    """How many images each pass of the teacher takes."""
    seen: list[int] = []
    hook = toy.teacher.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    yield seen
    hook.remove()


def _numbers(found: Any) -> list[float]:
    if isinstance(found, dict):
        return [number for key in sorted(found) for number in _numbers(found[key])]
    if isinstance(found, list):
        return [number for each in found for number in _numbers(each)]
    return [] if isinstance(found, str) else [float(found)]


def test_judging_in_passes_says_what_judging_at_once_says(toy: Toy) -> None:
    prompts = FrequencyPrompts(toy.shapes)
    prompts.calibrate([toy.teacher(toy.images).features])
    _set(prompts, std=1.0)
    found = []
    for most_pixels, largest in ((16 * 144, 16), (5 * 144, 4), (1, 2)):  # sixteen images of 12 x 12 in equal parts
        with _batches(toy) as seen:
            found.append(phase_one_report(prompts, toy.teacher, toy.images, most_pixels=most_pixels))
        assert (max(seen), sum(seen)) == (largest, 4 * 16)  # clean, and with three masks
    assert 0 < found[0]["own"]["agreement"] < 100
    for other in found[1:]:
        assert _numbers(other) == pytest.approx(_numbers(found[0]), rel=1e-4, abs=1e-6)


def test_images_go_in_passes_of_two_or_more_in_their_order() -> None:
    for num, most_pixels, sizes in ((7, 3 * 16, [3, 2, 2]), (3, 1, [3]), (4, 16, [2, 2]), (1, 16, [1]), (9, 1e9, [9])):
        images = torch.arange(num).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        parts = in_passes(images, int(most_pixels))
        assert [len(part) for part in parts] == sizes
        assert torch.equal(torch.cat(parts), images)


def test_calibrating_in_passes_finds_the_deviation_of_all_values(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most_pixels, sizes in ((8 * 144, [16]), (2 * 144, [4, 4, 4, 4])):
        monkeypatch.setattr(learners, "MOST_PIXELS", most_pixels)
        prompts = FrequencyPrompts(toy.shapes)
        with _batches(toy) as seen:
            learners.calibrate(prompts, toy.teacher, toy.pixels, 16)
        assert seen == sizes
        found.append([group.amplitude for group in prompts.modules() if isinstance(group, BandPrompts)])
    features = toy.teacher(toy.images).features
    bands = [band for level, scales in ((0, 2), (1, 1)) for band in haar_dwt(features[level], scales)]
    for at_once, in_parts, band in zip(*found, bands, strict=True):
        assert torch.equal(at_once, band.std(dim=(0, 1, 3, 4)))  # to the bit: what was trained before starts the same
        expected = [np.std(band[:, :, o].double().numpy(), ddof=1) for o in range(band.shape[2])]
        assert in_parts.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("size", "batches"), [(32, [500, 100]), (64, [268, 268, 64]), (224, [21] * 28 + [12])])
def test_a_split_is_scored_in_batches_that_memory_can_hold(size: int, batches: list[int]) -> None:
    images = torch.arange(600).remainder(7).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size)
    pixels, seen = Pixels(images, torch.arange(600) % 7, (0.0,), (1 / 255,)), list[int]()

    def forward(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        return -(inputs[:, 0, :1, 0] - torch.arange(7)).abs()

    assert top1(forward, pixels) == 100.0
    assert seen == batches


def _report(own: float, agreement: float, others: float, spread: float = 0.5) -> Json:
    masks = [{"mean": 1.0, "spread": 0.0}, {"mean": 0.3, "spread": spread}, {"mean": 0.001, "spread": 2.0}]
    kls = {name: {"kl": others} for name in ("shuffled", "constant")}
    return {"own": {"kl": own, "agreement": agreement}, **kls, "masks": masks}


def test_prompts_that_choose_are_accepted_and_others_refused_with_a_reason() -> None:
    assert why_not_accepted(_report(0.02, 97.0, 0.4)) is None
    assert "agrees with itself on 60.0 %" in str(why_not_accepted(_report(0.02, 60.0, 0.4)))
    assert "no better than random ones" in str(why_not_accepted(_report(0.3, 97.0, 0.4)))


def test_masks_that_change_nothing_are_not_accepted() -> None:
    assert why_not_accepted(_report(0.0, 100.0, 0.0)) is not None
    assert why_not_accepted(_report(-3e-9, 100.0, 2e-8)) is not None  # rounding


def test_masks_that_choose_bands_but_no_pixels_are_not_accepted() -> None:
    assert "constant over the pixels" in str(why_not_accepted(_report(0.02, 97.0, 0.4, spread=0.05)))
