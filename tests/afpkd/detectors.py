"""A small detector, boxes for it, and an output with everything in it."""

from functools import cache, partial

import torch
from torch import Tensor

from afpkd.models.fcos import STRIDES, FcosDetector
from afpkd.models.outputs import Detections
from afpkd.tasks.detection import Detection
from deploy.agent.detections import Rule, detections_of
from tests.scenes import CANVAS

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
