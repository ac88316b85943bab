"""FCOS: torchvision's, opened up. Its cells, boxes and losses; who learns what on which level."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList

from afpkd.models import DETECTORS, build_model, probe_shapes
from afpkd.models.fcos import STRIDES, location_cells, raw_detections
from deploy.agent.detections import Rule, detections_of
from tests.afpkd.detectors import outputs, small, targets
from tests.scenes import CANVAS


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


@pytest.mark.parametrize("divisor", [1.0, 2.0, 3.0])
def test_objects_are_dealt_to_levels_by_their_size(divisor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a loop over locations and boxes; boxes that are exact there, in strides, cost nothing."""
    dealt: list[Tensor] = []

    def seen(head: FCOSHead, *args: Any) -> dict[str, Tensor]:
        dealt.extend(args[3])
        losses: dict[str, Tensor] = given(head, *args)
        return losses

    given = FCOSHead.compute_loss
    monkeypatch.setattr(FCOSHead, "compute_loss", seen)
    found, wanted = outputs(canvas=(160, 208)), targets()
    levels = [level for level, feature in enumerate(found.features) for _ in range(feature[0, 0].numel())]
    expected = [-1] * len(levels)
    for place, (level, cell) in enumerate(zip(levels, location_cells(found.features).tolist(), strict=True)):
        x, y = (cell[0] + cell[2]) / 2, (cell[1] + cell[3]) / 2
        least, most = (0.0, 64.0, 128.0, 256.0, 512.0, math.inf)[level : level + 2]
        fitting = []
        for number, (left, top, right, bottom) in enumerate(wanted[0]["boxes"].tolist()):
            sides = (x - left, y - top, right - x, bottom - y)
            away = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
            if min(sides) > 0 and away < 1.5 * STRIDES[level] and least < divisor * max(sides) < most:
                fitting.append(((right - left) * (bottom - top), number, sides))
        if fitting:
            _, expected[place], sides = min(fitting)
            found.distances[0, place] = torch.tensor(sides) / STRIDES[level]
    losses = small().losses(found, wanted, divisor)
    assert dealt[0].tolist() == expected
    assert set(dealt[1].tolist()) == {-1}
    assert float(losses["boxes"]) < 1e-5
    on = {levels[place] for place, number in enumerate(expected) if number >= 0}
    assert on == {1.0: {0}, 2.0: {0, 1}, 3.0: {0, 1, 2}}[divisor]


def test_boxes_of_a_new_detector_are_about_two_strides_wide() -> None:
    """FCOS starts at exp(0) = 1 stride to each side; relu of a bias of 0 would be dead at half of the locations."""
    found = small()(torch.randn(2, 3, *CANVAS))
    assert float(found.distances.detach().min()) > 0
    assert float(found.distances.detach().mean()) == pytest.approx(1, abs=0.3)


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
