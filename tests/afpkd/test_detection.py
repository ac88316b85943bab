"""Detection: how far two answers differ, how a detector learns, what prompts and students do inside of it."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from afpkd.acceptance import phase_one_report
from afpkd.checkpoint import state_sha256
from afpkd.data.batches import Augmentation
from afpkd.data.coco_batches import Scenes
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.fusion import FeatureFusion, LevelAdapters
from afpkd.learners import FrozenTeacher, Learner, plain_learner, prompt_learner, start_adapters, student_learner
from afpkd.models import probe_shapes
from afpkd.models.fcos import FcosDetector
from afpkd.models.outputs import Detections, Shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.record import Json
from afpkd.settings import TrainSettings
from afpkd.tasks import detection
from afpkd.train import Fitting
from tests.afpkd.detectors import CPU, TASK, outputs, small
from tests.scenes import CANVAS, write_scenes


def test_an_unchanged_answer_has_not_changed_and_any_change_counts() -> None:
    clean = outputs()
    assert float(TASK.changed(clean, clean, 4.0)) == pytest.approx(0, abs=1e-5)
    assert TASK.agreement(clean, clean) == 100
    for part in ("logits", "distances", "centerness"):
        changed = clean._replace(**{part: getattr(clean, part) + 1})
        assert float(TASK.changed(changed, clean, 4.0)) > 0.01, part
    assert TASK.agreement(clean._replace(logits=-clean.logits), clean) < 50
    assert TASK.agreement(clean._replace(distances=4 * clean.distances), clean) < 50
    assert TASK.agreement(clean._replace(centerness=clean.centerness - 6), clean) < 50


@pytest.mark.parametrize("distance", [0.0, 1e-5])
def test_boxes_without_area_have_not_changed_where_they_are_equal(distance: float) -> None:
    """Distances leave a ReLU: all four may be 0."""
    clean = outputs()
    clean.distances[:, ::3] = distance
    same = clean._replace(distances=clean.distances.clone().requires_grad_())
    found = TASK.changed(same, clean, 4.0)
    assert float(found.detach()) == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(found, same.distances)
    assert bool(gradient[:, ::3].eq(0).all())
    assert bool(gradient.isfinite().all())
    collapsed = clean._replace(distances=torch.zeros_like(clean.distances))
    assert float(TASK.changed(collapsed, clean, 4.0)) > 0.5


def test_the_change_of_classes_is_the_kl_of_bernoulli_distributions() -> None:
    clean, other = outputs(1), outputs(2)
    other = clean._replace(logits=other.logits)
    p, q = (torch.sigmoid(found.logits).double() for found in (clean, other))
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    objects = (p.amax(dim=-1) * torch.sigmoid(clean.centerness.double()).squeeze(-1)).sum()
    assert float(TASK.changed(other, clean, 4.0)) == pytest.approx(float(kl / objects), rel=1e-4)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Eight of them in memory."""
    split = write_scenes(tmp_path_factory.mktemp("scenes"), 8)
    return Scenes(split, CANVAS, (0.5,) * 3, (0.5,) * 3, CPU)


def fitted(learner: Learner, scenes: Scenes, folder: Path, epochs: float = 1, lr: float = 1e-3) -> Fitting:
    settings = TrainSettings(epochs=epochs, batch_size=4, optimizer="adam", lr=lr, weight_decay=0, schedule="onecycle")
    return Fitting(
        learner,
        scenes,
        settings,
        augmentation=Augmentation(scales=(0.9, 1.1)),
        seed=0,
        checkpoint=folder / "checkpoint.pt",
        digest="d",
    )


@pytest.mark.slow
def test_a_detector_learns_what_can_be_learnt(scenes: Scenes, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3)
    done = fitted(plain_learner(network, scenes, TASK), scenes, tmp_path, epochs=40, lr=2e-3).run(lambda *_: None)
    assert max(row["heldout_ap"] for row in done.history) > 60
    assert done.history[0]["heldout_ap"] < 20
    assert done.history[0]["losses"].keys() == {"classification", "boxes", "centerness"}


def test_a_resumed_detector_is_bit_equal_to_one_that_was_never_stopped(scenes: Scenes, tmp_path: Path) -> None:
    states = []
    for stopped in (False, True):
        torch.manual_seed(0)
        network = FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3)
        folder = tmp_path / str(stopped)
        fitting = fitted(plain_learner(network, scenes, TASK), scenes, folder, epochs=2)
        if stopped:
            for _ in range(2):
                fitting.advance()
            torch.manual_seed(9)
            network = FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3)
            fitting = fitted(plain_learner(network, scenes, TASK), scenes, folder, epochs=2)
            assert fitting.step == 2
        fitting.run(lambda *_: None)
        states.append(state_sha256(network))
    assert states[0] == states[1]


NAMES = {"imitation": {"spatial"}, "reviewkd": {"spatial"}, "freekd": {"frequency"}, "afpkd": {"frequency", "spatial"}}
"""Losses beside the task's own; of another method whatever it gives."""


@pytest.mark.parametrize("method", [name for name, options in OPTIONS.items() if not options.needs_logits])
def test_a_student_is_distilled_by_every_method_that_needs_no_logits(
    method: str, scenes: Scenes, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    teacher = FrozenTeacher(FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3))
    student = FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3)
    shapes = [probe_shapes(net, in_channels=3, image_size=CANVAS) for net in (student, teacher.model)]
    options: Json = {name: 0 if name == "warm_up" else value for name, value in vars(OPTIONS[method]()).items()}
    if OPTIONS[method].uses_prompts:
        options["prompts"] = FrequencyPrompts(shapes[1])
        assert options["prompts"].level_scales == [2, 1, 0, 0, 0]
    learner = student_learner(student, teacher, build_distiller(method, *shapes, **options), scenes, task=TASK)
    before = state_sha256(student)
    row = fitted(learner, scenes, tmp_path, epochs=0.5).run(lambda *_: None).history[0]
    added = row["losses"].keys() - {"classification", "boxes", "centerness"}
    assert added == NAMES.get(method, added)
    assert bool(added) == (method != "none")
    assert row["gradient_norms"].keys() == row["losses"].keys()
    assert all(norm > 0 for norm in row["gradient_norms"].values())
    assert state_sha256(student) != before


def test_phase_one_runs_inside_a_frozen_detector(scenes: Scenes, tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher = FrozenTeacher(FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3))
    prompts = FrequencyPrompts(probe_shapes(teacher.model, in_channels=3, image_size=CANVAS))
    images = scenes.normalised(scenes.sample(4))
    prompts.calibrate([teacher(images).features])
    objectives: tuple[Literal["choose", "task"], ...] = ("choose", "task")
    for objective in objectives:
        weights = {"overlap_weight": 0, "area": 0.1, "area_weight": 30}
        learner = prompt_learner(prompts, teacher, scenes, objective=objective, task=TASK, **weights)
        row = fitted(learner, scenes, tmp_path / objective).run(lambda *_: None).history[0]
        expected = {"teacher", "area"} if objective == "choose" else {"classification", "boxes", "centerness"}
        assert row["losses"].keys() == expected
    report = phase_one_report(prompts, teacher, images, TASK)
    assert report["own"]["kl"] > 0
    assert {row["level"] for row in report["masks"]} == {0, 1}
    halves = phase_one_report(prompts, teacher, images, TASK, most_pixels=2 * math.prod(CANVAS))
    for name in ("own", "shuffled", "constant"):
        assert halves[name] == pytest.approx(report[name], rel=1e-4)


def test_no_scene_is_scored_alone(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a mask drops is swapped with another scene's."""
    monkeypatch.setattr(detection, "_BATCH_SIZE", scenes.num_images - 1)
    seen: list[int] = []

    def forward(images: Tensor) -> Detections:
        seen.append(len(images))
        found: Detections = small()(images)
        return found

    TASK.scores(forward, scenes)
    assert seen == [scenes.num_images]


def test_what_a_mask_drops_is_zero_or_the_next_images() -> None:
    feature = torch.randn(3, 4, 8, 8)
    shapes = Shapes(channels=[4], sizes=[(8, 8)], pooled=4, num_classes=2)
    kept = 0.3

    def refined(dropped: Literal["zero", "swapped"]) -> Tensor:
        torch.manual_seed(0)
        prompts = FrequencyPrompts(shapes, dropped=dropped)
        prompts.calibrate([[feature]])
        change = lambda masks: [torch.full_like(mask, kept) for mask in masks]  # noqa: E731 (one line of many)
        omega = prompts.position_weight(0, [feature])
        return prompts.refiner([feature], [], change)(0, feature) / omega[:, :, None, None]

    assert torch.allclose(refined("zero"), kept * feature, atol=1e-5)
    assert torch.allclose(refined("swapped"), kept * feature + (1 - kept) * feature.roll(1, 0), atol=1e-5)


@pytest.mark.parametrize("method", ["imitation", "reviewkd", "afpkd", "freekd"])
def test_adapters_of_a_detector_start_with_the_teachers_channels(method: str, scenes: Scenes) -> None:
    torch.manual_seed(3)
    teacher = FrozenTeacher(FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3))
    for parameter in teacher.model.get_submodule("backbone.fpn.layer_blocks").parameters():
        parameter.data.mul_(5.0).add_(0.1 * torch.randn_like(parameter))  # nothing in a pyramid is normalised
    teacher = FrozenTeacher(teacher.model)
    shapes = probe_shapes(teacher.model, in_channels=3, image_size=CANVAS)
    prompts = {"prompts": FrequencyPrompts(shapes)} if OPTIONS[method].uses_prompts else {}
    distiller = build_distiller(method, shapes, shapes, **dataclasses.asdict(OPTIONS[method]()), **prompts)
    features = teacher(scenes.normalised(scenes.sample(8))).features
    start_adapters(distiller, teacher, scenes, 8)
    adapters = next(module for module in distiller.children() if isinstance(module, FeatureFusion | LevelAdapters))
    adapters.train()
    own = adapters([torch.randn(64, *feature.shape[1:]) for feature in features])
    for ours, theirs in zip(own, features, strict=True):
        assert torch.allclose(ours.mean(dim=(0, 2, 3)), theirs.mean(dim=(0, 2, 3)), atol=1e-3)
        assert torch.allclose(ours.std(dim=(0, 2, 3)), theirs.std(dim=(0, 2, 3)), rtol=0.02, atol=1e-3)
