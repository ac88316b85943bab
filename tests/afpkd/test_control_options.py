"""AFPKD's control options: each changes what it says and nothing else."""

from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor, nn

from afpkd.distillers.afpkd import AFPKD
from afpkd.distillers.freekd import FreeKD
from afpkd.distillers.frequency import FrequencyTerm
from afpkd.record import Json
from afpkd.wavelet import haar_dwt, haar_idwt
from tests.afpkd.conftest import Pair, distiller_of, free_prompts, losses_of, prompts_of


def _one_band(pair: Pair, level: int, group: int, orientation: int) -> list[Tensor]:
    """The teacher's maps with something added in one band of one level."""
    maps = list(pair.teacher.features)
    bands = [torch.zeros_like(band) for band in haar_dwt(maps[level], 2 - level)]
    bands[group][:, :, orientation] = 1.0
    maps[level] = maps[level] + haar_idwt(bands, pair.shapes[1].sizes[level])
    return maps


@pytest.mark.parametrize(("bands", "low", "details"), [("all", 1, 1), ("low", 1, 0), ("details", 0, 1)])
def test_the_frequency_term_sees_the_bands_it_is_told_to_and_freekd_all(
    bands: str, low: int, details: int, pair: Pair
) -> None:
    options: Json = {"normalise": "level", "bands": bands}
    terms = [FrequencyTerm(prompts_of(pair), **options)]
    if bands == "all":
        free = distiller_of(pair, "freekd", prompts=free_prompts(pair))
        assert isinstance(free, FreeKD)
        terms.append(free.frequency)
    for term in terms:
        for level in (0, 1):
            for group in range(3 - level):
                for orientation in range(1 if group == 0 else 3):
                    loss = term(_one_band(pair, level, group, orientation), pair.teacher.features)
                    assert bool(loss > 1e-4) == bool(details if group else low), (level, group, orientation)


def test_a_constant_added_to_the_fused_map_is_no_business_of_the_details(pair: Pair) -> None:
    moved = [each.detach() + 3.0 for each in pair.student.features]
    for bands, same in (("details", True), ("low", False), ("all", False)):
        term = FrequencyTerm(prompts_of(pair), normalise="level", bands=bands, position_weight=False)  # type: ignore[arg-type]
        losses = [float(term(maps, pair.teacher.features).detach()) for maps in (list(pair.student.features), moved)]
        assert (losses[1] == pytest.approx(losses[0], rel=1e-4)) == same


def _term(pair: Pair, maps: list[Tensor], **options: Any) -> float:
    term = FrequencyTerm(**{"prompts": prompts_of(pair), "normalise": "level", **options})
    return float(term([each.detach() for each in maps], pair.teacher.features))


def test_a_constant_mask_without_position_weight_is_the_plain_l1_distance_of_bands(pair: Pair) -> None:
    levels = []
    for level, scales in ((0, 2), (1, 1)):
        difference = (pair.teacher.features[level] - pair.student.features[level]).detach().double().numpy()
        low, *details = pywt.wavedec2(difference, "haar", mode="zero", level=scales, axes=(-2, -1))
        levels.append(np.mean([np.abs(band).mean() for band in [low, *(band for d in details for band in d)]]))
    for normalise in ("level", "band", "none"):
        found = _term(pair, pair.student.features, mask="constant", normalise=normalise, position_weight=False)
        assert found == pytest.approx(float(np.mean(levels)), rel=1e-4)


def test_shuffled_and_banded_masks_keep_their_area_and_move_it(pair: Pair) -> None:
    options: Json = {"normalise": "none", "position_weight": False, "prompts": prompts_of(pair, scales=1)}
    even = []
    for level, each in enumerate(pair.teacher.features):  # student - teacher is 1 in every band, at every position
        ones = [torch.ones_like(band) for band in haar_dwt(each, int(level < 2))]
        even.append(each + haar_idwt(ones, pair.shapes[1].sizes[level]))
    for maps, same in ((even, True), (pair.student.features, False)):
        losses = [_term(pair, maps, mask=mask, **options) for mask in ("prompts", "shuffled", "banded")]
        assert (losses[1] == pytest.approx(losses[0], rel=1e-4)) == same
        assert (losses[2] == pytest.approx(losses[0], rel=1e-4)) == same
        assert same or losses[1] != pytest.approx(losses[2], rel=1e-4)
    untrained = _term(pair, pair.student.features, mask="untrained")  # who builds it passes untuned prompts
    assert untrained == _term(pair, pair.student.features, mask="prompts")


def test_without_position_weight_all_channels_count_the_same(pair: Pair) -> None:
    for option, same in ((False, True), (True, False)):
        losses = []
        for channel in range(8):
            maps = [each.clone() for each in pair.teacher.features]
            maps[0][:, channel] += 1.0
            losses.append(_term(pair, maps, mask="constant", position_weight=option))
        assert (losses == pytest.approx([losses[0]] * 8, rel=1e-4)) == same


def test_fusion_1x1_makes_levels_independent(pair: Pair) -> None:
    maps = pair.student.imitated()
    for fusion, reached in (("1x1", [False, False, True, False]), ("top-down", [True, True, True, False])):
        distiller = distiller_of(pair, "afpkd", fusion=fusion).eval()
        assert isinstance(distiller, AFPKD)
        before, after = distiller.fusion(maps), distiller.fusion([*maps[:2], maps[2] + 1, maps[3]])
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == reached
        kernels = {m.kernel_size for m in distiller.modules() if isinstance(m, nn.Conv2d)}
        assert kernels == ({(1, 1)} if fusion == "1x1" else {(1, 1), (3, 3)})


def test_the_local_branch_adds_a_module_to_each_level_but_the_pooled_one_and_nothing_else(pair: Pair) -> None:
    names = [{n for n, _ in distiller_of(pair, "afpkd", local_branch=on).named_parameters()} for on in (True, False)]
    assert names[1] < names[0]
    assert {tuple(n.split(".")[2:4]) for n in names[0] - names[1]} == {(level, "local") for level in "012"}


def test_afpkd_weighs_its_losses_and_switches_them_off(pair: Pair) -> None:
    base = losses_of(pair, "afpkd", mu=1.0, gamma=1.0)
    assert set(base) == {"frequency", "spatial"}
    heavier = losses_of(pair, "afpkd", mu=3.0, gamma=2.0)
    assert heavier == pytest.approx({"frequency": 3 * base["frequency"], "spatial": 2 * base["spatial"]}, rel=1e-5)
    kd = losses_of(pair, "kd", kd_weight=0.5)["kd"]
    assert losses_of(pair, "afpkd", mu=0.0, gamma=0.0, kappa=0.5) == pytest.approx({"kd": kd})
    assert losses_of(pair, "afpkd", mu=0.0, gamma=1.0) == pytest.approx({"spatial": base["spatial"]})


FREQUENCY_ALONE: Json = {
    "normalise": "band",
    "mask": "constant",
    "bands": "details",
    "position_weight": False,
}


@pytest.mark.parametrize("option", FREQUENCY_ALONE)
def test_options_of_the_frequency_loss_leave_the_others_alone(option: str, pair: Pair) -> None:
    base = losses_of(pair, "afpkd", kappa=1.0)
    changed = losses_of(pair, "afpkd", kappa=1.0, **{option: FREQUENCY_ALONE[option]})
    assert changed["frequency"] != pytest.approx(base["frequency"], rel=1e-3)
    assert {name: changed[name] for name in ("spatial", "kd")} == {name: base[name] for name in ("spatial", "kd")}


def test_afpkd_without_frequency_local_branch_and_logits_is_reviewkd(pair: Pair) -> None:
    review = losses_of(pair, "reviewkd", gamma=0.6)
    assert losses_of(pair, "afpkd", mu=0.0, gamma=0.6, local_branch=False) == pytest.approx(review)
