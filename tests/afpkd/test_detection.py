"""FCOS: torchvision's, opened up. Its loss, its decoded boxes, what prompts and students see of it, how it learns."""

import math
from functools import cache, partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from afpkd.acceptance import phase_one_report
from afpkd.checkpoint import state_sha256
from afpkd.data.batches import Augmentation
from afpkd.data.coco_batches import Scenes
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.learners import FrozenTeacher, Learner, plain_learner, prompt_learner, student_learner
from afpkd.models import DETECTORS, build_model, probe_shapes
from afpkd.models.fcos import STRIDES, FcosDetector, location_cells, raw_detections
from afpkd.models.outputs import Detections, Shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.record import Json
from afpkd.settings import TrainSettings
from afpkd.tasks.detection import Detection
from afpkd.train import Fitting
from deploy.agent.detections import Rule, detections_of
from tests.scenes import CANVAS, write_scenes

CPU = torch.device("cpu")
TASK = Detection(partial(detections_of, rule=Rule()))


@cache
def small(seed: int = 0, width: int = 64) -> FcosDetector:
    torch.manual_seed(seed)
    network = FcosDetector("mobilenet_v3_small", width=width, num_convs=1, num_classes=3)
    network.eval()
    return network


def targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 90.0, 60.0], [50.0, 20.0, 60.0, 28.0]])
    return [
        {"boxes": boxes, "labels": torch.tensor([0, 2, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def outputs(seed: int = 0, canvas: tuple[int, int] = CANVAS) -> Detections:
    """A detector's output with everything in it: scores of any size, boxes of any size."""
    torch.manual_seed(seed)
    features = [torch.randn(2, 32, -(-canvas[0] // s), -(-canvas[1] // s)) for s in STRIDES]
    locations = sum(feature.shape[-2] * feature.shape[-1] for feature in features)
    return Detections(
        torch.randn(2, locations, 3), torch.rand(2, locations, 4) * 4, torch.randn(2, locations, 1), features
    )


def test_cells_are_torchvisions_where_128_divides_the_input() -> None:
    features = [torch.zeros(1, 1, 256 // stride, 384 // stride) for stride in STRIDES]
    generator = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * 5)
    expected = generator(ImageList(torch.zeros(1, 3, 256, 384), [(256, 384)]), features)[0]
    assert torch.equal(location_cells(features), expected)
    odd = location_cells([torch.zeros(1, 1, -(-160 // s), -(-208 // s)) for s in STRIDES])
    assert odd[-1].tolist() == [64, 64, 192, 192]  # P7, 2x2: where 160 // 2 would put it at 80


def test_decoded_detections_are_torchvisions() -> None:
    found = outputs(canvas=(128, 256))
    network = small()
    cells = location_cells(found.features)
    sizes = [feature.shape[-2] * feature.shape[-1] for feature in found.features]
    head = {"cls_logits": found.logits, "bbox_regression": found.distances, "bbox_ctrness": found.centerness}
    network.score_thresh, network.nms_thresh, network.detections_per_img = 0.3, 0.6, 100
    expected = network.postprocess_detections(
        {name: list(torch.split(values, sizes, dim=1)) for name, values in head.items()},
        [list(torch.split(cells, sizes))] * 2,
        [(128, 256)] * 2,
    )
    for raw, theirs in zip(raw_detections(found).numpy(), expected, strict=True):
        ours = detections_of(raw, (128, 256), 1.0, Rule(score=0.3, iou=0.6))
        order = theirs["scores"].argsort(descending=True, stable=True)
        assert len(ours.scores) > 20
        assert ours.scores == pytest.approx(theirs["scores"][order].numpy(), abs=1e-6)
        assert ours.boxes == pytest.approx(theirs["boxes"][order].numpy(), abs=1e-4)
        assert ours.classes.tolist() == theirs["labels"][order].tolist()


def test_losses_are_those_of_torchvisions_forward() -> None:
    """Its own training forward on the same weights, images and boxes; 128 divides the input, so its anchors agree."""
    network = small().train()
    images = torch.randn(2, 3, 128, 128)
    found = network.losses(network(images), targets())
    ours = {name: float(loss.detach()) for name, loss in found.items()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    theirs = FCOS(network.backbone, 3, 128, 128, [0.0] * 3, [1.0] * 3, head=network.head, size_divisible=128).train()
    expected = theirs(list(images), targets())
    network.load_state_dict(state)
    network.eval()
    names = {"classification": "classification", "boxes": "bbox_regression", "centerness": "bbox_ctrness"}
    assert ours == pytest.approx({name: float(expected[key].detach()) for name, key in names.items()}, rel=1e-4)


def test_the_published_detector_has_our_parameters() -> None:
    published = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5).state_dict()
    own = build_model("fcos-resnet50", num_classes=5, in_channels=3).state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: v.shape for name, v in published.items()}


@pytest.mark.parametrize("arch", DETECTORS)
def test_every_detector_has_five_levels_at_their_strides(arch: str) -> None:
    with torch.device("meta"):
        network = build_model(arch, num_classes=2, in_channels=3)
        found = network.eval()(torch.zeros(1, 3, 160, 208))
    assert [feature.shape[-2:] for feature in found.features] == [(-(-160 // s), -(-208 // s)) for s in STRIDES]
    width = {"64": 64, "128": 128}.get(arch.rpartition("-")[2], 256)
    assert {feature.shape[1] for feature in found.features} == {width}


def test_refine_reaches_every_level_and_the_head() -> None:
    network, images = small(), torch.randn(1, 3, *CANVAS)
    seen: list[tuple[int, tuple[int, ...]]] = []

    def doubled(level: int, feature: Tensor) -> Tensor:
        seen.append((level, tuple(feature.shape)))
        return 2 * feature

    with torch.no_grad():
        clean, refined = network(images), network(images, doubled)
        head = network.head([2 * feature for feature in clean.features])
    assert [level for level, _ in seen] == [0, 1, 2, 3, 4]
    assert all(torch.equal(2 * ours, theirs) for ours, theirs in zip(clean.features, refined.features, strict=True))
    assert torch.equal(refined.logits, head["cls_logits"])
    assert not torch.equal(refined.logits, clean.logits)


def test_shapes_of_a_detector_are_its_pyramids() -> None:
    shapes = probe_shapes(small(), in_channels=3, image_size=CANVAS)
    assert shapes.pooled is None
    assert shapes.num_classes == 3
    assert shapes.imitated_channels() == [64] * 5
    assert shapes.imitated_sizes() == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


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
    images = scenes.normalised(scenes.first(4))
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


def test_what_a_mask_drops_is_zero_or_the_next_images() -> None:
    feature = torch.randn(3, 4, 8, 8)
    shapes = Shapes(channels=[4], sizes=[(8, 8)], pooled=4, num_classes=2)
    kept = 0.3

    def refined(dropped: Literal["zero", "swapped"]) -> Tensor:
        torch.manual_seed(0)
        prompts = FrequencyPrompts(shapes, dropped=dropped)
        prompts.calibrate([[feature]])
        change = lambda masks: [torch.full_like(mask, kept) for mask in masks]  # noqa: E731
        omega = prompts.position_weight(0, [feature])
        return prompts.refiner([feature], [], change)(0, feature) / omega[:, :, None, None]

    assert torch.allclose(refined("zero"), kept * feature, atol=1e-5)
    assert torch.allclose(refined("swapped"), kept * feature + (1 - kept) * feature.roll(1, 0), atol=1e-5)
