"""The parts of the method against their equations, and how they meet."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from afpkd.distillers import DISTILLERS, build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.fusion import FeatureFusion
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Outputs, Shapes
from afpkd.position import PositionWeight, position_relation
from afpkd.prompts import FrequencyPrompts, LevelPrompts, mask_statistics
from afpkd.wavelet import haar_dwt


@pytest.fixture(name="pair")
def _pair() -> tuple[torch.nn.Module, torch.nn.Module, Shapes, Shapes]:
    torch.manual_seed(0)
    student, teacher = (build_model(arch, num_classes=5, in_channels=1) for arch in ("resnet8", "resnet20"))
    shapes = [probe_shapes(model, in_channels=1, image_size=(12, 12)) for model in (student, teacher)]
    return student, teacher.eval().requires_grad_(False), shapes[0], shapes[1]


def test_position_relation_is_softmax_of_psi_f_transposed() -> None:
    feature, following = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(2))
    found = position_relation(feature, following).numpy()
    for n in range(2):
        scores = following[n].flatten(1).numpy() @ feature[n].flatten(1).numpy().T / 4.0
        expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(found[n], expected, atol=1e-12)


def test_position_weight_has_mean_one_and_looks_one_level_deeper() -> None:
    torch.manual_seed(0)
    weight = PositionWeight(8, 16)
    feature, deeper = torch.randn(3, 8, 8, 8), torch.randn(3, 16, 4, 4)
    omega = weight(feature, deeper)
    assert omega.shape == (3, 8)
    assert torch.allclose(omega.mean(1), torch.ones(3))
    assert not torch.allclose(omega, weight(feature, 5 * deeper))


@pytest.mark.parametrize("tokens", [1, 2, 4, 6])
def test_zero_prompts_leave_the_feature_as_it_is(tokens: int) -> None:
    level = LevelPrompts(4, scales=2, tokens=tokens)
    for parameter in level.parameters():
        torch.nn.init.zeros_(parameter)
    feature = torch.randn(2, 4, 7, 9)
    refined, overlap = level.refined(feature)
    assert torch.allclose(refined, feature, atol=1e-6)
    assert overlap.item() == pytest.approx(0.0 if tokens == 1 else 1.0)


def test_pixel_mask_is_the_gated_sum_of_sigmoids() -> None:
    torch.manual_seed(0)
    level = LevelPrompts(4, scales=1, tokens=2).double()
    for parameter in level.parameters():
        torch.nn.init.normal_(parameter)
    bands = haar_dwt(torch.randn(1, 4, 4, 4, dtype=torch.float64), 1)
    group = level.groups[1]
    state = {name: p.detach().numpy() for name, p in group.named_parameters()}
    band = bands[1][0, :, 2].numpy()  # C, h, w: the diagonal band
    energy = np.abs(band).mean((1, 2))
    gates = np.exp(state["gate_weight"][2] @ energy + state["gate_bias"][2])
    gates /= gates.sum()
    logits = np.einsum("tc,chw->thw", state["prompts"][2], band) / math.sqrt(4)
    expected = (gates[:, None, None] / (1 + np.exp(-logits))).sum(0)
    np.testing.assert_allclose(level.pixel_masks(bands)[1][0, 2].detach(), expected, atol=1e-12)


def test_prompts_act_inside_the_teacher_and_learn_while_it_stays_frozen(
    pair: tuple[torch.nn.Module, torch.nn.Module, Shapes, Shapes],
) -> None:
    _, teacher, _, shapes = pair
    prompts = FrequencyPrompts(shapes, tokens=2)
    images, overlaps = torch.randn(3, 1, 12, 12), list[Tensor]()
    clean = teacher(images)
    refined = teacher(images, prompts.refiner(clean.features, overlaps))
    assert len(overlaps) == len(prompts.banded_levels()) == 2  # 12 and 6 pixels; 3 pixels have no bands
    assert not torch.equal(refined.logits, clean.logits)
    assert torch.allclose(refined.logits, clean.logits, atol=0.05 * float(clean.logits.abs().max()))
    gradients = torch.autograd.grad(refined.logits.square().sum(), list(prompts.parameters()), allow_unused=True)
    unused = [n for (n, _), g in zip(prompts.named_parameters(), gradients, strict=True) if g is None]
    assert unused == []


def test_mask_statistics_of_zero_prompts_are_one_half_without_spread(
    pair: tuple[torch.nn.Module, torch.nn.Module, Shapes, Shapes],
) -> None:
    _, teacher, _, shapes = pair
    prompts = FrequencyPrompts(shapes)
    for parameter in prompts.parameters():
        torch.nn.init.zeros_(parameter)
    rows = mask_statistics(prompts, teacher(torch.randn(3, 1, 12, 12)).features)
    assert [row["band"] for row in rows if row["level"] == 1] == ["low", "row1", "column1", "diagonal1"]
    assert all(row["mean"] == pytest.approx(0.5) and row["spread"] == pytest.approx(0.0) for row in rows)


def test_fusion_carries_the_deepest_level_to_every_shallower_one() -> None:
    torch.manual_seed(0)
    fusion = FeatureFusion([8, 16, 32], [6, 12, 24], [(8, 8), (4, 4), (1, 1)], local_branch=True).eval()
    maps = [torch.randn(2, 8, 16, 16), torch.randn(2, 16, 4, 4), torch.randn(2, 32, 1, 1)]
    fused = fusion(maps)
    assert [tuple(f.shape) for f in fused] == [(2, 6, 8, 8), (2, 12, 4, 4), (2, 24, 1, 1)]
    deeper = fusion([*maps[:2], maps[2] + 1])
    shallower = fusion([maps[0] + 1, *maps[1:]])
    assert all(not torch.equal(a, b) for a, b in zip(fused, deeper, strict=True))
    assert [torch.equal(a, b) for a, b in zip(fused, shallower, strict=True)] == [False, True, True]


def test_local_branch_is_an_option_of_the_same_module() -> None:
    with_branch, without = (
        FeatureFusion([4, 4], [4, 4], [(4, 4), (1, 1)], local_branch=branch) for branch in (True, False)
    )
    extra = {name for name, _ in with_branch.named_parameters()} - {name for name, _ in without.named_parameters()}
    assert {name.split(".")[2] for name in extra} == {"local"}
    assert {name.split(".")[1] for name in extra} == {"0"}  # none on a 1x1 map


def _losses(
    method: str, pair: tuple[torch.nn.Module, torch.nn.Module, Shapes, Shapes], progress: float, **changed: float
) -> dict[str, Tensor]:
    student, teacher, student_shapes, teacher_shapes = pair
    options = {**vars(OPTIONS[method]()), **changed}
    if OPTIONS[method].uses_prompts:
        options["prompts"] = FrequencyPrompts(teacher_shapes)
    torch.manual_seed(1)
    distiller = build_distiller(method, student_shapes, teacher_shapes, **options)
    images, labels = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(2)), torch.arange(4)
    outputs: Outputs = student(images)
    losses: dict[str, Tensor] = distiller(outputs, teacher(images), labels, progress)
    return losses


def test_every_registered_method_has_options_and_sends_gradient(
    pair: tuple[torch.nn.Module, torch.nn.Module, Shapes, Shapes],
) -> None:
    assert list(DISTILLERS) == list(OPTIONS)
    student = pair[0]
    for method in DISTILLERS:
        for name, loss in _losses(method, pair, 1.0).items():
            gradients = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, allow_unused=True)
            assert any(g is not None and bool(g.abs().max() > 0) for g in gradients), (method, name)


def test_afpkd_options_weigh_their_losses_and_switch_them_off(
    pair: tuple[torch.nn.Module, torch.nn.Module, Shapes, Shapes],
) -> None:
    torch.manual_seed(3)
    base = _losses("afpkd", pair, 1.0, mu=1.0, gamma=1.0)
    torch.manual_seed(3)
    heavier = _losses("afpkd", pair, 1.0, mu=3.0, gamma=2.0, kappa=1.0)
    assert set(base) == {"frequency", "spatial"}
    assert set(heavier) == {"frequency", "spatial", "kd"}
    assert heavier["frequency"].item() == pytest.approx(3 * base["frequency"].item(), rel=1e-4)
    assert heavier["spatial"].item() == pytest.approx(2 * base["spatial"].item(), rel=1e-4)
    assert set(_losses("afpkd", pair, 1.0, mu=0.0)) == {"spatial"}


@pytest.mark.parametrize("method", ["reviewkd", "afpkd"])
def test_warm_up_scales_the_distillation_losses(
    method: str, pair: tuple[torch.nn.Module, torch.nn.Module, Shapes, Shapes]
) -> None:
    torch.manual_seed(3)
    full = _losses(method, pair, 1.0)
    torch.manual_seed(3)
    half = _losses(method, pair, 10 / 240)
    for name in full:
        assert half[name].item() == pytest.approx(full[name].item() / 2, rel=1e-4)


def test_frozen_prompts_are_not_part_of_the_distiller(
    pair: tuple[torch.nn.Module, torch.nn.Module, Shapes, Shapes],
) -> None:
    prompts = FrequencyPrompts(pair[3])
    distiller = build_distiller("afpkd", pair[2], pair[3], prompts=prompts, **vars(OPTIONS["afpkd"]()))
    assert {name.split(".")[0] for name, _ in distiller.named_parameters()} == {"fusion"}
    assert not any(parameter.requires_grad for parameter in prompts.parameters())


def test_fusion_level_is_an_attention_weighted_sum_of_both_levels() -> None:
    torch.manual_seed(0)
    level = FeatureFusion([4, 6], [5, 5], [(4, 4), (2, 2)], local_branch=False).double().eval().levels[0]
    feature, deeper = (torch.randn(2, c, s, s, dtype=torch.float64) for c, s in ((4, 4), (6, 2)))
    x = level.project(feature)  # type: ignore[operator]
    y = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    maps = 1 / (1 + torch.exp(-level.attention(torch.cat([x, y], 1))))  # type: ignore[operator]
    output, passed_on = level(feature, deeper)
    assert torch.allclose(passed_on, maps[:, :1] * x + maps[:, 1:] * y)
    assert torch.allclose(output, level.output(passed_on))  # type: ignore[operator]
