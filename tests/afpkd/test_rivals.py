"""Every distiller against its paper, and AFPKD's control options: each changes what it says and nothing else."""

import copy
from typing import Any, NamedTuple

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor, nn

from afpkd.distillers import build_distiller
from afpkd.distillers.afpkd import AFPKD
from afpkd.distillers.catkd import class_maps
from afpkd.distillers.distiller import Distiller
from afpkd.distillers.freekd import FreeKD
from afpkd.distillers.frequency import FrequencyTerm
from afpkd.distillers.options import OPTIONS, WARM_UP
from afpkd.errors import UserError
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Outputs, Shapes
from afpkd.position import unit_mean
from afpkd.prompts import FrequencyPrompts
from afpkd.record import Json
from afpkd.wavelet import haar_dwt, haar_idwt

LABELS = torch.tensor([0, 3, 1, 4])
RAMPED = [method for method, options in OPTIONS.items() if hasattr(options, "warm_up")]


class Pair(NamedTuple):
    """What a student and its teacher say of one batch; maps of 12, 6 and 3 pixels: two scales, one scale, none."""

    student: Outputs
    teacher: Outputs
    shapes: tuple[Shapes, Shapes]
    parameters: list[nn.Parameter]


@pytest.fixture(name="pair", scope="module")
def _pair() -> Pair:
    torch.manual_seed(0)
    nets = [build_model(arch, num_classes=5, in_channels=1) for arch in ("resnet8", "resnet20")]
    shapes = [probe_shapes(net, in_channels=1, image_size=(12, 12)) for net in nets]
    nets[1].eval().requires_grad_(False)
    student, teacher = (net(torch.randn(4, 1, 12, 12)) for net in nets)
    return Pair(student, teacher, (shapes[0], shapes[1]), list(nets[0].parameters()))


def _prompts(pair: Pair, **form: Any) -> FrequencyPrompts:
    """Prompts that mark something, and gates that tell channels apart, as a phase 1 would leave them."""
    torch.manual_seed(7)
    prompts = FrequencyPrompts(pair.shapes[1], **form)
    prompts.calibrate(pair.teacher.features)
    for parameter in prompts.parameters():
        nn.init.normal_(parameter)
    return prompts


def _distiller(pair: Pair, method: str, **changed: Any) -> Distiller:
    options = {**vars(OPTIONS[method]()), **changed}
    if OPTIONS[method].uses_prompts:
        options.setdefault("prompts", _prompts(pair))
    torch.manual_seed(1)
    return build_distiller(method, *pair.shapes, **options)


def _losses(pair: Pair, method: str, progress: float = 1.0, **changed: Any) -> dict[str, float]:
    losses = _distiller(pair, method, **changed)(pair.student, pair.teacher, LABELS, progress)
    return {name: float(loss.detach()) for name, loss in losses.items()}


@pytest.mark.parametrize("method", OPTIONS)
def test_every_loss_of_a_method_sends_gradient_and_its_weights_switch_it_off(method: str, pair: Pair) -> None:
    weights = OPTIONS[method].loss_weights
    losses = _distiller(pair, method)(pair.student, pair.teacher, LABELS, 1.0)
    assert bool(losses) == bool(weights) == (method != "none"), "name the options that weigh its losses: loss_weights"
    assert not any(_losses(pair, method, **dict.fromkeys(weights, 0.0)).values()), "what is left has no weight"
    for key in [key for key, value in vars(OPTIONS[method]()).items() if type(value) is float and key not in weights]:
        assert _losses(pair, method, **{key: 1.0}).keys() == losses.keys(), f"{key} weighs a loss: name it, too"
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, pair.parameters, retain_graph=True, allow_unused=True)
        assert any(g is not None and bool(g.abs().max() > 0) for g in gradients), name


@pytest.mark.parametrize("method", [method for method, options in OPTIONS.items() if options.imitates_maps])
def test_a_method_that_imitates_maps_says_so_of_a_network_without(method: str, pair: Pair) -> None:
    bare = pair.shapes[0]._replace(channels=[], sizes=[])
    for whose, shapes in (("student", (bare, pair.shapes[1])), ("teacher", (pair.shapes[0], bare))):
        with pytest.raises(UserError, match=f"{method} imitates feature maps, and the {whose} has none"):
            build_distiller(method, *shapes)


def test_methods_with_a_warm_up_rise_from_zero_over_that_fraction_of_the_schedule_and_others_do_not(pair: Pair) -> None:
    assert pytest.approx(20 / 240) == WARM_UP
    assert {"dkd", "imitation", "reviewkd", "freekd", "afpkd"} <= set(RAMPED)
    for method in RAMPED:
        full, half = _losses(pair, method), _losses(pair, method, WARM_UP / 2)
        assert full.keys() == half.keys()
        assert list(half.values()) == pytest.approx([value / 2 for value in full.values()], rel=1e-5)
        assert set(_losses(pair, method, 0.0).values()) == {0.0}
        assert _losses(pair, method, WARM_UP) == pytest.approx(full, rel=1e-6)
        assert _losses(pair, method, 0.0, warm_up=0.0) == full
    assert all(_losses(pair, method, 0.0) == _losses(pair, method, 1.0) for method in set(OPTIONS) - set(RAMPED))


def test_dkd_options_weigh_their_terms_and_switch_them_off(pair: Pair) -> None:
    base = _losses(pair, "dkd", alpha=1.0, beta=1.0)
    heavier = _losses(pair, "dkd", alpha=3.0, beta=8.0)
    assert heavier["target_class"] == pytest.approx(3 * base["target_class"])
    assert heavier["other_classes"] == pytest.approx(8 * base["other_classes"])
    assert _losses(pair, "dkd", alpha=0.0, beta=1.0) == {"other_classes": base["other_classes"]}
    assert _losses(pair, "dkd", alpha=1.0, beta=0.0) == {"target_class": base["target_class"]}


@pytest.mark.parametrize("method", ["kd", "dkd", "afpkd"])
def test_standardise_makes_a_method_blind_to_scale_and_shift_of_the_logits(method: str, pair: Pair) -> None:
    moved = pair._replace(student=pair.student._replace(logits=7 * pair.student.logits + 3))
    only_logits = {"mu": 0.0, "gamma": 0.0, "kappa": 1.0} if method == "afpkd" else {}
    blind, seeing = ({**only_logits, "standardise": on} for on in (True, False))
    assert _losses(moved, method, **blind) == pytest.approx(_losses(pair, method, **blind), rel=1e-4)
    assert _losses(moved, method, **seeing) != pytest.approx(_losses(pair, method, **seeing), rel=1e-2)


@pytest.mark.parametrize("arch", ["resnet8", "vgg8", "wrn-16-2", "mobilenetv2", "shufflenetv1"])
def test_class_maps_have_the_logits_as_their_mean_over_positions(arch: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = build_model(arch, num_classes=5, in_channels=3).eval()(torch.randn(2, 3, 32, 32))
        maps = class_maps(outputs)
    assert maps.shape == (2, 5, *outputs.final.shape[2:])
    torch.testing.assert_close(maps.mean(dim=(2, 3)), outputs.logits, rtol=1e-4, atol=1e-5)


def test_catkd_adapts_nothing_and_its_options_weigh_pool_and_normalise(pair: Pair) -> None:
    assert list(_distiller(pair, "catkd").parameters()) == []
    base = _losses(pair, "catkd", beta=1.0)["class_maps"]
    assert _losses(pair, "catkd", beta=15.0)["class_maps"] == pytest.approx(15 * base)
    logits = float((pair.student.logits - pair.teacher.logits).square().mean().detach())
    assert _losses(pair, "catkd", beta=1.0, pooled_size=1)["class_maps"] == pytest.approx(logits, rel=1e-4)
    louder = copy.deepcopy(pair.teacher.classifier)
    for parameter in louder.parameters():
        parameter.mul_(9)  # the teacher is frozen
    loud = pair._replace(teacher=pair.teacher._replace(classifier=louder))
    for normalise in (True, False):
        losses = [_losses(each, "catkd", normalise=normalise)["class_maps"] for each in (pair, loud)]
        assert (losses[1] == pytest.approx(losses[0], rel=1e-4)) == normalise


def _free_prompts(pair: Pair) -> FrequencyPrompts:
    return _prompts(pair, united=False, gate=False)


def test_freekd_has_a_1x1_adapter_a_level_and_neither_fusion_nor_spatial_loss(pair: Pair) -> None:
    distiller = _distiller(pair, "freekd", prompts=_free_prompts(pair))
    convolutions = [module for module in distiller.modules() if isinstance(module, nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(1, 1)] * len(pair.shapes[1].sizes)
    assert set(distiller(pair.student, pair.teacher, LABELS, 1.0)) == {"frequency"}


@pytest.mark.parametrize(("method", "trained"), [("freekd", "adapters"), ("afpkd", "fusion")])
def test_prompts_are_no_part_of_a_distiller_and_never_train(method: str, trained: str, pair: Pair) -> None:
    prompts = _prompts(pair)
    distiller = _distiller(pair, method, prompts=prompts).train()
    assert {name.split(".")[0] for name in distiller.state_dict()} == {trained}
    assert all(parameter.requires_grad for parameter in distiller.parameters())
    assert not any(parameter.requires_grad for parameter in prompts.parameters())
    assert not any(module.training for module in prompts.modules())


def test_freekd_loss_is_the_mean_over_tokens_bands_channels_and_positions(pair: Pair) -> None:
    prompts = _free_prompts(pair)
    distiller = _distiller(pair, "freekd", prompts=prompts, mu=3.0)
    assert isinstance(distiller, FreeKD)
    with torch.no_grad():
        adapted, levels = distiller.adapters(pair.student.features), []
        for level in prompts.banded_levels():
            maps = adapted[level], pair.teacher.features[level]
            bands = [haar_dwt(each, prompts.level_scales[level]) for each in maps]
            weights = [prompts.position_weight(level, each) for each in (adapted, pair.teacher.features)]
            omega = unit_mean(weights[0] * weights[1])[:, :, None, None]
            marked, means = prompts.level(level).marked(bands[1]), []
            for ours, theirs, found in zip(*bands, marked, strict=True):
                for o in range(ours.shape[2]):
                    tokens = found.tokens[:, o].unbind(1)
                    terms = [m[:, None] * theirs[:, :, o] - m[:, None] * ours[:, :, o] for m in tokens]
                    means.append(torch.stack([(omega * term.abs()).mean() for term in terms]).mean())
            levels.append(torch.stack(means).mean())
    expected = 3.0 * float(torch.stack(levels).mean())
    found_loss = float(distiller(pair.student, pair.teacher, LABELS, 1.0)["frequency"].detach())
    assert found_loss == pytest.approx(expected, rel=1e-4)


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
    terms = [FrequencyTerm(_prompts(pair), **options)]
    if bands == "all":
        free = _distiller(pair, "freekd", prompts=_free_prompts(pair))
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
        term = FrequencyTerm(_prompts(pair), normalise="level", bands=bands, position_weight=False)  # type: ignore[arg-type]
        losses = [float(term(maps, pair.teacher.features).detach()) for maps in (list(pair.student.features), moved)]
        assert (losses[1] == pytest.approx(losses[0], rel=1e-4)) == same


def _term(pair: Pair, maps: list[Tensor], **options: Any) -> float:
    term = FrequencyTerm(**{"prompts": _prompts(pair), "normalise": "level", **options})
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
    options: Json = {"normalise": "none", "position_weight": False, "prompts": _prompts(pair, scales=1)}
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
        distiller = _distiller(pair, "afpkd", fusion=fusion).eval()
        assert isinstance(distiller, AFPKD)
        before, after = distiller.fusion(maps), distiller.fusion([*maps[:2], maps[2] + 1, maps[3]])
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == reached
        kernels = {m.kernel_size for m in distiller.modules() if isinstance(m, nn.Conv2d)}
        assert kernels == ({(1, 1)} if fusion == "1x1" else {(1, 1), (3, 3)})


def test_the_local_branch_adds_a_module_to_each_level_but_the_pooled_one_and_nothing_else(pair: Pair) -> None:
    names = [{n for n, _ in _distiller(pair, "afpkd", local_branch=on).named_parameters()} for on in (True, False)]
    assert names[1] < names[0]
    assert {tuple(n.split(".")[2:4]) for n in names[0] - names[1]} == {(level, "local") for level in "012"}


def test_afpkd_weighs_its_losses_and_switches_them_off(pair: Pair) -> None:
    base = _losses(pair, "afpkd", mu=1.0, gamma=1.0)
    assert set(base) == {"frequency", "spatial"}
    heavier = _losses(pair, "afpkd", mu=3.0, gamma=2.0)
    assert heavier == pytest.approx({"frequency": 3 * base["frequency"], "spatial": 2 * base["spatial"]}, rel=1e-5)
    kd = _losses(pair, "kd", kd_weight=0.5)["kd"]
    assert _losses(pair, "afpkd", mu=0.0, gamma=0.0, kappa=0.5) == pytest.approx({"kd": kd})
    assert _losses(pair, "afpkd", mu=0.0, gamma=1.0) == pytest.approx({"spatial": base["spatial"]})


FREQUENCY_ALONE: Json = {
    "normalise": "band",
    "mask": "constant",
    "bands": "details",
    "position_weight": False,
}


@pytest.mark.parametrize("option", FREQUENCY_ALONE)
def test_options_of_the_frequency_loss_leave_the_others_alone(option: str, pair: Pair) -> None:
    base = _losses(pair, "afpkd", kappa=1.0)
    changed = _losses(pair, "afpkd", kappa=1.0, **{option: FREQUENCY_ALONE[option]})
    assert changed["frequency"] != pytest.approx(base["frequency"], rel=1e-3)
    assert {name: changed[name] for name in ("spatial", "kd")} == {name: base[name] for name in ("spatial", "kd")}


def test_afpkd_without_frequency_local_branch_and_logits_is_reviewkd(pair: Pair) -> None:
    review = _losses(pair, "reviewkd", gamma=0.6)
    assert _losses(pair, "afpkd", mu=0.0, gamma=0.6, local_branch=False) == pytest.approx(review)


def test_imitation_is_the_squared_error_of_adapted_maps(pair: Pair) -> None:
    distiller = build_distiller("imitation", *pair.shapes, gamma=3.0, warm_up=0.0).eval().double()
    expected = 0.0
    levels = list(distiller.get_submodule("adapters.levels").children())
    for level, ours, theirs in zip(levels, pair.student.features, pair.teacher.features, strict=True):
        weight = level.get_parameter("0.weight")[:, :, 0, 0].detach().numpy()
        mapped = np.einsum("oc,nchw->nohw", weight, ours.detach().double().numpy()) / np.sqrt(1 + 1e-5)  # BN at rest
        expected += float(np.mean((mapped - theirs.double().numpy()) ** 2))
    doubled = [
        outputs._replace(features=[f.double() for f in outputs.features]) for outputs in (pair.student, pair.teacher)
    ]
    found = distiller(*doubled, LABELS, 1.0)
    assert float(found["spatial"].detach()) == pytest.approx(3 * expected, rel=1e-6)
