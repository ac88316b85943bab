"""Every distiller against its paper."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from afpkd.distillers import build_distiller
from afpkd.distillers.catkd import class_maps
from afpkd.distillers.freekd import FreeKD
from afpkd.distillers.options import OPTIONS, WARM_UP
from afpkd.errors import UserError
from afpkd.fusion import FeatureFusion, LevelAdapters
from afpkd.models import build_model
from afpkd.models.outputs import Outputs
from afpkd.position import unit_mean
from afpkd.wavelet import haar_dwt
from tests.afpkd.conftest import LABELS, Pair, distiller_of, free_prompts, losses_of, prompts_of

RAMPED = [method for method, options in OPTIONS.items() if hasattr(options, "warm_up")]


@pytest.mark.parametrize("method", OPTIONS)
def test_every_loss_of_a_method_sends_gradient_and_its_weights_switch_it_off(method: str, pair: Pair) -> None:
    weights = OPTIONS[method].loss_weights
    losses = distiller_of(pair, method)(pair.student, pair.teacher, LABELS, 1.0)
    assert bool(losses) == bool(weights) == (method != "none"), "name the options that weigh its losses: loss_weights"
    assert not any(losses_of(pair, method, **dict.fromkeys(weights, 0.0)).values()), "what is left has no weight"
    for key in [key for key, value in vars(OPTIONS[method]()).items() if type(value) is float and key not in weights]:
        assert losses_of(pair, method, **{key: 1.0}).keys() == losses.keys(), f"{key} weighs a loss: name it, too"
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
        full, half = losses_of(pair, method), losses_of(pair, method, WARM_UP / 2)
        assert full.keys() == half.keys()
        assert list(half.values()) == pytest.approx([value / 2 for value in full.values()], rel=1e-5)
        assert set(losses_of(pair, method, 0.0).values()) == {0.0}
        assert losses_of(pair, method, WARM_UP) == pytest.approx(full, rel=1e-6)
        assert losses_of(pair, method, 0.0, warm_up=0.0) == full
    assert all(losses_of(pair, method, 0.0) == losses_of(pair, method, 1.0) for method in set(OPTIONS) - set(RAMPED))


@pytest.mark.parametrize("method", [method for method, options in OPTIONS.items() if hasattr(options, "relative")])
def test_relative_losses_do_not_know_the_range_of_the_teachers_features(method: str, pair: Pair) -> None:
    fixed = {"mask": "constant", "position_weight": False} if method == "afpkd" else {}
    louder = pair.teacher._replace(
        features=[1e3 * each for each in pair.teacher.features], pooled=1e3 * pair.teacher.pooled
    )

    def found(teacher: Outputs, times: float, **changed: bool) -> dict[str, float]:
        distiller = distiller_of(pair, method, **fixed, **changed)
        for adapter in [each for each in distiller.modules() if isinstance(each, FeatureFusion | LevelAdapters)]:
            for norm in adapter.last_norms():
                norm.weight.data *= times
        return {name: float(loss.detach()) for name, loss in distiller(pair.student, teacher, LABELS, 1.0).items()}

    as_it_is, powers = found(pair.teacher, 1), {"spatial": 2, "frequency": 1}
    times = {name: loss / as_it_is[name] for name, loss in found(louder, 1e3).items()}
    assert times == pytest.approx({name: 1e3 ** powers[name] for name in as_it_is}, rel=1e-4)
    relative = found(pair.teacher, 1, relative=True)
    assert found(louder, 1e3, relative=True) == pytest.approx(relative, rel=1e-4)


def test_dkd_options_weigh_their_terms_and_switch_them_off(pair: Pair) -> None:
    base = losses_of(pair, "dkd", alpha=1.0, beta=1.0)
    heavier = losses_of(pair, "dkd", alpha=3.0, beta=8.0)
    assert heavier["target_class"] == pytest.approx(3 * base["target_class"])
    assert heavier["other_classes"] == pytest.approx(8 * base["other_classes"])
    assert losses_of(pair, "dkd", alpha=0.0, beta=1.0) == {"other_classes": base["other_classes"]}
    assert losses_of(pair, "dkd", alpha=1.0, beta=0.0) == {"target_class": base["target_class"]}


@pytest.mark.parametrize("method", ["kd", "dkd", "afpkd"])
def test_standardise_makes_a_method_blind_to_scale_and_shift_of_the_logits(method: str, pair: Pair) -> None:
    moved = pair._replace(student=pair.student._replace(logits=7 * pair.student.logits + 3))
    only_logits = {"mu": 0.0, "gamma": 0.0, "kappa": 1.0} if method == "afpkd" else {}
    blind, seeing = ({**only_logits, "standardise": on} for on in (True, False))
    assert losses_of(moved, method, **blind) == pytest.approx(losses_of(pair, method, **blind), rel=1e-4)
    assert losses_of(moved, method, **seeing) != pytest.approx(losses_of(pair, method, **seeing), rel=1e-2)


@pytest.mark.parametrize("arch", ["resnet8", "vgg8", "wrn-16-2", "mobilenetv2", "shufflenetv1"])
def test_class_maps_have_the_logits_as_their_mean_over_positions(arch: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = build_model(arch, num_classes=5, in_channels=3).eval()(torch.randn(2, 3, 32, 32))
        maps = class_maps(outputs)
    assert maps.shape == (2, 5, *outputs.final.shape[2:])
    torch.testing.assert_close(maps.mean(dim=(2, 3)), outputs.logits, rtol=1e-4, atol=1e-5)


def test_catkd_adapts_nothing_and_its_options_weigh_pool_and_normalise(pair: Pair) -> None:
    assert list(distiller_of(pair, "catkd").parameters()) == []
    base = losses_of(pair, "catkd", beta=1.0)["class_maps"]
    assert losses_of(pair, "catkd", beta=15.0)["class_maps"] == pytest.approx(15 * base)
    logits = float((pair.student.logits - pair.teacher.logits).square().mean().detach())
    assert losses_of(pair, "catkd", beta=1.0, pooled_size=1)["class_maps"] == pytest.approx(logits, rel=1e-4)
    louder = copy.deepcopy(pair.teacher.classifier)
    for parameter in louder.parameters():
        parameter.mul_(9)  # the teacher is frozen
    loud = pair._replace(teacher=pair.teacher._replace(classifier=louder))
    for normalise in (True, False):
        losses = [losses_of(each, "catkd", normalise=normalise)["class_maps"] for each in (pair, loud)]
        assert (losses[1] == pytest.approx(losses[0], rel=1e-4)) == normalise


def test_freekd_has_a_1x1_adapter_a_level_and_neither_fusion_nor_spatial_loss(pair: Pair) -> None:
    distiller = distiller_of(pair, "freekd", prompts=free_prompts(pair))
    convolutions = [module for module in distiller.modules() if isinstance(module, nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(1, 1)] * len(pair.shapes[1].sizes)
    assert set(distiller(pair.student, pair.teacher, LABELS, 1.0)) == {"frequency"}


@pytest.mark.parametrize(("method", "trained"), [("freekd", "adapters"), ("afpkd", "fusion")])
def test_prompts_are_no_part_of_a_distiller_and_never_train(method: str, trained: str, pair: Pair) -> None:
    prompts = prompts_of(pair)
    distiller = distiller_of(pair, method, prompts=prompts).train()
    assert {name.split(".")[0] for name in distiller.state_dict()} == {trained}
    assert all(parameter.requires_grad for parameter in distiller.parameters())
    assert not any(parameter.requires_grad for parameter in prompts.parameters())
    assert not any(module.training for module in prompts.modules())


def test_freekd_loss_is_the_mean_over_tokens_bands_channels_and_positions(pair: Pair) -> None:
    prompts = free_prompts(pair)
    distiller = distiller_of(pair, "freekd", prompts=prompts, mu=3.0)
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


def test_imitation_is_the_squared_error_of_adapted_maps(pair: Pair) -> None:
    distiller = build_distiller("imitation", *pair.shapes, gamma=3.0, warm_up=0.0, relative=False).eval().double()
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
