"""Object detection with FCOS: its losses, COCO's average precision, and how far two answers of one detector differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from afpkd.data.coco_batches import Boxed, Scenes
from afpkd.distributed import averaged
from afpkd.evaluate import bounds_of_passes
from afpkd.models.fcos import FcosDetector, boxes_of, raw_detections
from afpkd.models.outputs import Detections
from afpkd.tasks.coco_metrics import Detected, average_precision
from afpkd.tasks.task import Forward, Scores

Find = Callable[[NDArray[np.float32], tuple[int, int], float], Detected]
"""(one image's raw output A, 4 + K; height and width of the image; its scale on the canvas) -> its detections.

The one implementation of non-maximum suppression runs on devices without torch (`deploy.agent.detections`); it is
given to the task, which lies below it.
"""

SEEN = 0.2
"""From this score on a location sees an object: torchvision's threshold of what it shows."""

LEAST_AREA = 1e-3
"""Square pixels of a box; below, 1 - GIoU of a box with itself is no 0: torchvision divides by the area + 1e-7."""

_BATCH_SIZE = 8


class Detection:
    """Boxes with classes."""

    metric = "ap"
    num_judged = 32

    def __init__(self, find: Find, *, range_divisor: float = 1.0) -> None:
        self._find, self._range_divisor = find, range_divisor

    def losses(self, model: nn.Module, outputs: Detections, target: list[Boxed]) -> dict[str, Tensor]:
        """{"classification", "boxes", "centerness"}: FCOS's, each a mean over the locations on objects."""
        assert isinstance(model, FcosDetector)
        return model.losses(outputs, target, self._range_divisor)

    def changed(self, outputs: Detections, clean: Detections, temperature: float) -> Tensor:
        """How far `outputs` say something else than `clean`, a location on which the clean teacher sees an object.

        Bernoulli KL(clean || outputs) of the classes at every location, and where the teacher is sure, weighted by how
        sure: that of the centerness, and 1 - GIoU of the boxes. No temperature: it would make answers of the thousands
        of locations that see nothing.
        """
        classes, centres = torch.sigmoid(clean.logits), torch.sigmoid(clean.centerness)
        sure = classes.amax(dim=-1)
        of_classes = _bernoulli_kl(outputs.logits, clean.logits).sum(dim=-1)
        of_centres = _bernoulli_kl(outputs.centerness, clean.centerness).squeeze(-1)
        of_boxes = _moved(boxes_of(outputs), boxes_of(clean))
        weighted = of_classes + sure * (of_centres + of_boxes)
        seen = averaged((sure * centres.squeeze(-1)).sum())
        changed: Tensor = weighted.sum() / seen.clamp_min(1e-6)
        return changed

    def agreement(self, outputs: Detections, clean: Detections) -> float:
        """Percent of the locations on which `clean` sees an object where `outputs` see it too.

        The same class with at least half the threshold's score, its box overlapping by one half; 100 where none is.
        """
        ours, theirs = raw_detections(outputs).flatten(0, 1), raw_detections(clean).flatten(0, 1)
        seen = theirs[:, 4:].amax(dim=1) >= SEEN
        ours, theirs = ours[seen], theirs[seen]
        if not len(theirs):
            return 100.0
        score, label = ours[:, 4:].max(dim=1)
        overlap = torch.cat([box_iou(*pair) for pair in zip(ours[:, None, :4], theirs[:, None, :4], strict=True)])
        same = (label == theirs[:, 4:].argmax(dim=1)) & (score >= SEEN / 2) & (overlap.flatten() >= 0.5)
        return 100 * int(same.sum()) / len(theirs)

    def scores(self, forward: Forward, samples: Scenes) -> Scores:
        """{"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}."""
        scenes = zip(samples.split.scenes, samples.scales, _raw(forward, samples), strict=True)
        return dict(
            average_precision(samples.split, [self._find(raw, scene.size, scale) for scene, scale, raw in scenes])
        )


def _raw(forward: Forward, samples: Scenes) -> Iterator[NDArray[np.float32]]:
    """The raw output of every image, A, 4 + K."""
    for start, end in bounds_of_passes(samples.num_images, _BATCH_SIZE):
        with torch.no_grad():
            raw = raw_detections(forward(samples.normalised(samples.pixels(list(range(start, end))))).in_float32())
        yield from raw.cpu().numpy()


def _moved(boxes: Tensor, clean: Tensor) -> Tensor:
    """1 - GIoU of boxes N, A, 4: 0 where equal, and where the clean box has no area, so that no overlap is defined."""
    area = (clean[..., 2:] - clean[..., :2]).clamp_min(0).prod(dim=-1)
    return torch.where(area > LEAST_AREA, generalized_box_iou_loss(boxes, clean).clamp_min(0), 0.0)


def _bernoulli_kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL of Bernoulli distributions given by their logits, element by element: 0 where equal."""
    target = torch.sigmoid(clean)
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(clean, target, reduction="none")
