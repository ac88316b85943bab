"""The twelve pairs of the published CIFAR-100 tables: each recipe reads, says what was published, and trains a step."""

import tomllib
from pathlib import Path

import pytest
import torch

from afpkd.checkpoint import state_sha256
from afpkd.data.batches import Pixels
from afpkd.distillers import build_distiller
from afpkd.learners import FrozenTeacher, student_learner
from afpkd.models import build_model, probe_shapes
from afpkd.prompts import FrequencyPrompts
from pipeline.recipe_networks import TrainedTeacher
from pipeline.recipe_reader import load_recipe, recipe_path

GAMMAS = {
    "resnet56-resnet20": 0.6,
    "resnet110-resnet32": 1.0,
    "resnet110-resnet20": 1.0,
    "resnet32x4-resnet8x4": 5.0,
    "wrn-40-2-wrn-16-2": 5.0,
    "wrn-40-2-wrn-40-1": 5.0,
    "vgg13-vgg8": 5.0,
    "resnet32x4-shufflenetv1": 5.0,
    "wrn-40-2-shufflenetv1": 5.0,
    "vgg13-mobilenetv2": 5.0,
    "resnet50-mobilenetv2": 5.0,
    "resnet32x4-shufflenetv2": 8.0,
}
"""Weight of the spatial loss for each pair of the tables."""

RIVALS = {
    "resnet56-resnet20": (2.0, 0.7, 2, False),
    "resnet110-resnet32": (2.0, 1.8, 2, False),
    "resnet110-resnet20": (2.0, 1.8, 2, False),
    "resnet32x4-resnet8x4": (8.0, 15.0, 2, False),
    "wrn-40-2-wrn-16-2": (6.0, 12.0, 2, False),
    "wrn-40-2-wrn-40-1": (6.0, 1.5, 2, False),
    "vgg13-vgg8": (6.0, 4.5, 2, False),
    "resnet32x4-shufflenetv1": (8.0, 600.0, 4, True),
    "wrn-40-2-shufflenetv1": (8.0, 80.0, 4, True),
    "vgg13-mobilenetv2": (6.0, 15.0, 2, True),
    "resnet50-mobilenetv2": (8.0, 40.0, 2, True),
    "resnet32x4-shufflenetv2": (8.0, 600.0, 4, True),
}
"""DKD's weight (mdistiller, whose default is 8); CAT-KD's, the side to which it pools, whether it normalises (its
authors' code)."""

METHODS = {"kd", "dkd", "reviewkd", "catkd"}


@pytest.mark.parametrize("pair", GAMMAS)
def test_recipe_is_the_literatures_for_its_pair(pair: str) -> None:
    recipe = load_recipe(f"cifar100-{pair}")[1]
    assert isinstance(recipe.teacher, TrainedTeacher)
    assert pair == f"{recipe.teacher.arch}-{recipe.distill.student}"
    for training in (recipe.teacher, recipe.distill):
        assert (training.epochs, training.batch_size, training.milestones) == (240, 64, (150, 180, 210))
    light = recipe.distill.student.startswith(("mobilenet", "shufflenet"))
    assert (recipe.teacher.lr, recipe.distill.lr) == (0.05, 0.01 if light else 0.05)
    options = recipe.distill.options()
    assert (recipe.distill.method, options["mu"], options["gamma"]) == ("afpkd", 5.0, GAMMAS[pair])
    parent = load_recipe("cifar100-resnet56-resnet20")[1]
    assert (recipe.data, recipe.prompts, recipe.export) == (parent.data, parent.prompts, parent.export)


@pytest.mark.parametrize("pair", GAMMAS)
def test_another_method_has_its_own_weights_for_the_pair(pair: str, tmp_path: Path) -> None:
    found = {}
    for method in METHODS:
        file = tmp_path / f"{method}.toml"
        file.write_text(f'extends = "cifar100-{pair}"\n[distill]\nmethod = "{method}"\n')
        found[method] = load_recipe(str(file))[1].distill.options()
    of_class_maps = tuple(found["catkd"][key] for key in ("beta", "pooled_size", "normalise"))
    assert (found["dkd"]["beta"], *of_class_maps) == RIVALS[pair]
    assert found["reviewkd"]["gamma"] == GAMMAS[pair]
    assert (found["kd"]["kd_weight"], found["kd"]["task_weight"]) == (0.9, 0.1)


@pytest.mark.parametrize("pair", GAMMAS)
def test_published_numbers_are_the_pairs_own_and_plausible(pair: str) -> None:
    recipe = load_recipe(f"cifar100-{pair}")[1]
    written = tomllib.loads(recipe_path(f"cifar100-{pair}").read_text())["expected"]
    published = {name: expected.top1 for name, expected in recipe.expected.items()}
    assert published == {name: expected["top1"] for name, expected in written.items()}  # nothing is inherited
    missing = {"catkd"} if pair == "wrn-40-2-shufflenetv1" else set()
    assert published.keys() == {"teacher", "undistilled", *METHODS} - missing
    assert all(published[name] > published["undistilled"] for name in published.keys() & METHODS)
    assert 1.5 <= published["teacher"] - recipe.teacher.min_top1 <= 2.5
    assert all(expected.source for expected in recipe.expected.values())


@pytest.mark.parametrize(
    "pair", [pytest.param(pair, marks=[pytest.mark.slow] if "resnet50" in pair else []) for pair in GAMMAS]
)
def test_one_step_of_afpkd_moves_the_student_and_leaves_the_teacher(pair: str) -> None:
    recipe = load_recipe(f"cifar100-{pair}")[1]
    torch.manual_seed(0)
    archs = (recipe.teacher.arch, recipe.distill.student)
    teacher, student = (build_model(arch, num_classes=100, in_channels=3) for arch in archs)
    shapes = [probe_shapes(model, in_channels=3, image_size=(32, 32)) for model in (student, teacher)]
    distiller = build_distiller("afpkd", *shapes, prompts=FrequencyPrompts(shapes[1]), **recipe.distill.options())
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    teacher(images)  # in train mode: running statistics of a network that has seen images
    frozen, before = FrozenTeacher(teacher), state_sha256(teacher)
    heldout = Pixels(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), labels[:1], (0.5,) * 3, (0.25,) * 3)
    learner = student_learner(student, frozen, distiller, heldout)
    trained = [parameter for parameter in learner.trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=recipe.distill.lr)
    weights = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    losses = learner.losses(images, labels, 1.0)
    assert {"task", "frequency", "spatial"} <= losses.keys()
    assert all(bool(loss.isfinite()) and bool(loss > 0) for loss in losses.values())
    torch.autograd.backward(list(losses.values()))
    optimizer.step()
    still = [name for name, parameter in student.named_parameters() if torch.equal(parameter, weights[name])]
    assert still == []
    assert all(bool(parameter.isfinite().all()) for parameter in trained)
    frozen.assert_unchanged()
    assert state_sha256(teacher) == before
