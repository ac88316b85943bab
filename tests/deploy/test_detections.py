"""Non-maximum suppression in numpy, against torchvision's: the one implementation behind every runtime."""

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from deploy.agent.detections import Rule, detections, detections_of, intersection_over_union


def raw_output(seed: int, locations: int = 300, classes: int = 4) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed))
    centres, sizes = rng.uniform(0, 100, (locations, 2)), rng.uniform(4, 50, (locations, 2))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    return np.concatenate([boxes, rng.random((locations, classes)) ** 3], axis=1).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", [Rule(), Rule(score=0.3, iou=0.3, most=7), Rule(candidates=50)])
def test_what_stays_is_what_torchvision_keeps(seed: int, rule: Rule) -> None:
    raw = raw_output(seed)
    found = detections(raw, (90, 80), rule)
    scores, flat = torch.from_numpy(raw[:, 4:]).flatten().sort(descending=True, stable=True)
    flat = flat[scores > rule.score][: rule.candidates]
    limits = torch.tensor([80.0, 90.0, 80.0, 90.0])
    boxes = torch.minimum(torch.from_numpy(raw[:, :4]).clamp_min(0), limits)[flat // 4]
    whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    flat, boxes = flat[whole], boxes[whole]
    best = torch.from_numpy(raw[:, 4:]).flatten()[flat]
    kept = batched_nms(boxes, best, flat % 4, rule.iou)[: rule.most]
    assert 5 < len(kept) <= len(flat)
    assert found.classes.tolist() == (flat % 4)[kept].tolist()
    assert np.array_equal(found.scores, best[kept].numpy())
    assert np.array_equal(found.boxes, boxes[kept].numpy())


def test_overlap_is_torchvisions() -> None:
    ours, theirs = raw_output(1, 20)[:, :4], raw_output(2, 30)[:, :4]
    expected = box_iou(torch.from_numpy(ours), torch.from_numpy(theirs)).numpy()
    assert intersection_over_union(ours, theirs) == pytest.approx(expected, abs=1e-5)


def test_boxes_return_to_the_image_that_was_letterboxed() -> None:
    raw = np.array([[8, 4, 40, 30, 0.9], [50, 2, 70, 12, 0.8]], dtype=np.float32)
    found = detections_of(raw, (40, 120), 0.5, Rule())  # 20 x 60 pixels of the input
    assert found.boxes.tolist() == [[16, 8, 80, 40], [100, 4, 120, 24]]


def test_nothing_is_found_where_no_score_or_no_number_is() -> None:
    raw = raw_output(3)
    raw[:, 4:] = np.nan
    assert len(detections(raw, (90, 80), Rule()).scores) == 0
    raw[:, 4:] = 0.01
    found = detections(raw, (90, 80), Rule())
    assert found.boxes.shape == (0, 4)
    assert found.classes.dtype == np.int64


def test_a_box_that_overlaps_just_so_much_stays() -> None:
    boxes = [[0, 0, 10, 10, 0.9], [0, 0, 10, 6, 0.8]]  # IoU 0.6
    raw = np.array(boxes, dtype=np.float32)
    assert len(detections(raw, (20, 20), Rule(iou=0.6)).scores) == 2
    assert len(detections(raw, (20, 20), Rule(iou=0.599)).scores) == 1
