"""Phase 1 judged: what masks are compared with, in how many passes, and when prompts are accepted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

from afpkd import evaluate, learners
from afpkd.acceptance import CHANGES, mask_statistics, phase_one_report, why_not_accepted
from afpkd.control_masks import banded, constant, shuffled
from afpkd.data.batches import Pixels
from afpkd.errors import UserError
from afpkd.evaluate import in_passes, top1
from afpkd.prompts import BandPrompts, FrequencyPrompts
from afpkd.record import Json
from afpkd.wavelet import haar_dwt
from tests.afpkd.conftest import Toy, drawn, toy_of


def test_mask_statistics_of_zero_prompts_have_no_spread(toy: Toy) -> None:
    for united, mean in ((True, 0.75), (False, 0.5)):  # two tokens of 1/2 each, united: 1 - 1/2 * 1/2
        prompts = FrequencyPrompts(toy.shapes, tokens=2, united=united)
        for parameter in prompts.parameters():
            nn.init.zeros_(parameter)
        rows = mask_statistics(prompts, toy.teacher(toy.images).features)
        assert [row["band"] for row in rows if row["level"] == 1] == ["low", "row1", "column1", "diagonal1"]
        assert all(row["mean"] == pytest.approx(mean) for row in rows)
        assert all(row["spread"] == pytest.approx(0.0, abs=1e-6) for row in rows)
        torch.manual_seed(0)
        for name, parameter in prompts.named_parameters():  # not the gates: large offsets are constant masks
            nn.init.normal_(parameter, std=float(name.endswith("prompts")))
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
    toy = toy_of(seed)
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
    torch.manual_seed(0)
    prompts = FrequencyPrompts(toy.shapes)
    prompts.calibrate([toy.teacher(toy.images).features])
    drawn(prompts, std=1.0)
    found = []
    for most_pixels, largest in ((16 * 144, 16), (6 * 144, 6), (1, 2)):  # sixteen images of 12 x 12 in equal parts
        with _batches(toy) as seen:
            found.append(phase_one_report(prompts, toy.teacher, toy.images, most_pixels=most_pixels))
        assert (max(seen), sum(seen)) == (largest, 5 * 16)  # clean, and with four masks
    assert 0 < found[0]["own"]["agreement"] < 100
    clean = toy.teacher(toy.images)
    for name, change in CHANGES.items():
        logits = learners.prompted(prompts, toy.teacher, toy.images, clean, change)[0].logits.detach().double().numpy()
        kl = rel_entr(softmax(clean.logits.double().numpy(), axis=1), softmax(logits, axis=1))
        assert found[0][name]["kl"] == pytest.approx(kl.sum(axis=1).mean(), rel=1e-4)
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


def test_no_image_is_scored_alone_where_its_neighbours_bands_are_swapped_in(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = FrequencyPrompts(toy.shapes, dropped="swapped")
    for group in (module for module in prompts.modules() if isinstance(module, BandPrompts)):
        assert group.gate_bias is not None
        nn.init.constant_(group.gate_bias, -2.0)  # most is dropped

    def forward(images: Tensor) -> Tensor:
        logits: Tensor = learners.prompted(prompts, toy.teacher, images, toy.teacher(images))[0].logits
        return logits

    at_once = evaluate.predict(forward, toy.pixels)
    for size in (15, 1):  # sixteen images: one would be left over; all would be alone
        monkeypatch.setattr(evaluate, "_BATCH_SIZE", size)
        with _batches(toy) as seen:
            found = evaluate.predict(forward, toy.pixels)
        assert seen == {15: [16] * 2, 1: [2] * 16}[size]  # clean and prompted
        assert size == 1 or torch.equal(found, at_once)


def test_answers_that_are_no_numbers_are_no_class() -> None:
    pixels = Pixels(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), (0.0,), (1.0,))
    with pytest.raises(UserError, match="the network answers NaN or infinity to 4 of 4 images"):
        top1(lambda inputs: inputs[:, 0, 0, :3] / 0, pixels)


def _report(own: float, agreement: float, others: float, spread: float = 0.5) -> Json:
    masks = [{"mean": 1.0, "spread": 0.0}, {"mean": 0.3, "spread": spread}, {"mean": 0.001, "spread": 2.0}]
    kls = {name: {"kl": others} for name in ("shuffled", "constant")}
    return {"own": {"kl": own, "agreement": agreement}, **kls, "masks": masks}


def test_prompts_that_choose_are_accepted_and_others_refused_with_a_reason() -> None:
    assert why_not_accepted(_report(0.02, 97.0, 0.4)) is None
    assert "agrees with itself on 60.0 %" in str(why_not_accepted(_report(0.02, 60.0, 0.4)))
    assert "no better than random ones" in str(why_not_accepted(_report(0.3, 97.0, 0.4)))


def test_masks_that_a_constant_one_outdoes_are_not_accepted() -> None:
    """As a task's loss leaves averaged tokens with a gate on the CIFAR-100 ResNet-56: 0.039, shuffled 0.47, 0.0007."""
    report = _report(0.039, 99.7, 0.47)
    assert why_not_accepted(report) is None
    report["constant"]["kl"] = 0.0007
    assert why_not_accepted(report) == (
        "a constant mask that keeps an equal share of coefficients changes less (KL 0.039 and 0.0007)"
    )


def test_masks_that_change_nothing_are_not_accepted() -> None:
    assert why_not_accepted(_report(0.0, 100.0, 0.0)) is not None
    assert why_not_accepted(_report(-3e-9, 100.0, 2e-8)) is not None  # rounding


def test_masks_that_choose_bands_but_no_pixels_are_not_accepted() -> None:
    assert "constant over the pixels" in str(why_not_accepted(_report(0.02, 97.0, 0.4, spread=0.05)))
