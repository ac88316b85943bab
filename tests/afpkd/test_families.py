"""Teachers and students of any two families: how their levels meet, and one step of AFPKD between them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from afpkd.checkpoint import state_sha256
from afpkd.data.batches import Pixels
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.fusion import matched_levels
from afpkd.learners import FrozenTeacher, prompt_learner, student_learner
from afpkd.models import build_model, probe_shapes
from afpkd.models.wrapped import renormalised
from afpkd.prompts import FrequencyPrompts

SIZE = (64, 64)


def test_levels_meet_by_size() -> None:
    def sizes(*sides: int) -> list[tuple[int, int]]:
        return [(side, side) for side in sides]

    assert matched_levels(sizes(16, 8, 4, 2), sizes(32, 16, 8, 4)) == [0, 1, 2, 3]  # as many: one by one
    assert matched_levels(sizes(16, 8, 4, 2), sizes(32, 16, 8)) == [0, 1, 2]
    assert matched_levels(sizes(32, 16, 8, 4, 2), sizes(16, 8, 4)) == [1, 2, 3]
    assert matched_levels(sizes(32, 16, 8), sizes(32, 16, 8, 4)) == [0, 1, 2, 2]
    assert matched_levels(sizes(16, 8), sizes(16, 8, 8, 4)) == [0, 1, 1, 1]
    assert matched_levels(sizes(8, 8, 4), sizes(8, 4)) == [1, 2]  # the deeper of equal ones
    assert matched_levels([], sizes(8, 4)) == matched_levels(sizes(8, 4), []) == []


TEACHERS = [
    *("resnet8x4", "torchvision:resnet18", "torchvision:densenet121", "torchvision:regnet_y_400mf"),
    *("timm:convnext_atto", "timm:repvgg_a0"),
]
STUDENTS = [
    *("mobilenetv2", "shufflenetv2", "torchvision:mobilenet_v3_small", "torchvision:mnasnet0_5"),
    *("timm:efficientnet_lite0", "timm:ghostnet_050"),
]
GREYER = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def networks() -> Callable[[str], nn.Module]:
    made: dict[str, nn.Module] = {}

    def network(arch: str) -> nn.Module:
        if arch not in made:
            torch.manual_seed(0)
            made[arch] = build_model(arch, num_classes=5, in_channels=3, image_size=SIZE)
        return made[arch]

    return network


@pytest.mark.slow
@pytest.mark.parametrize("teacher_arch", TEACHERS)
@pytest.mark.parametrize("student_arch", STUDENTS)
def test_one_step_of_afpkd_between_any_two_families(
    teacher_arch: str, student_arch: str, networks: Callable[[str], nn.Module]
) -> None:
    given = (0.3, 0.3, 0.3), (0.3, 0.3, 0.3)
    teacher = renormalised(networks(teacher_arch), given, GREYER)
    student = networks(student_arch).train()
    student.zero_grad(set_to_none=True)
    shapes = [probe_shapes(model, in_channels=3, image_size=SIZE) for model in (student, teacher)]
    frozen, before = FrozenTeacher(teacher), state_sha256(teacher)
    images, labels = torch.randn(4, 3, *SIZE), torch.arange(4)
    heldout = Pixels(torch.zeros(1, 3, *SIZE, dtype=torch.uint8), labels[:1], *given)
    prompts = FrequencyPrompts(shapes[1])
    prompts.calibrate([frozen(images).features])
    phase_one = prompt_learner(
        prompts, frozen, heldout, objective="choose", overlap_weight=0.0, area=0.25, area_weight=30.0
    )
    torch.autograd.backward(list(phase_one.losses(images, labels, 0.0).values()))
    assert all(p.grad is not None for name, p in prompts.named_parameters() if name.endswith("prompts"))
    levels = matched_levels(shapes[0].sizes, shapes[1].sizes)
    options = vars(OPTIONS["afpkd"]())
    distiller = build_distiller("afpkd", shapes[0].at(levels), shapes[1], prompts=prompts, **options)
    learner = student_learner(student, frozen, distiller, heldout, levels)
    optimizer = torch.optim.SGD([p for p in learner.trained.parameters() if p.requires_grad], lr=0.01)
    weights = {name: p.detach().clone() for name, p in student.named_parameters()}
    losses = learner.losses(images, labels, 1.0)
    assert losses.keys() == {"task", "frequency", "spatial"}
    assert all(bool(loss.isfinite()) and bool(loss > 0) for loss in losses.values())
    torch.autograd.backward(list(losses.values()))
    optimizer.step()
    assert [name for name, p in student.named_parameters() if p.grad is None or not bool(p.grad.any())] == []
    moved = [not torch.equal(p, weights[name]) for name, p in student.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)  # a norm's weight of 1 hardly notices a small step
    frozen.assert_unchanged()
    assert state_sha256(teacher) == before
