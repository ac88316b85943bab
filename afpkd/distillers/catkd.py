"""CAT-KD: Guo et al., "Class attention transfer based knowledge distillation" (CVPR 2023)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from afpkd.distillers.distiller import Distiller, Losses
from afpkd.errors import UserError
from afpkd.losses import Progress, class_map_loss
from afpkd.models.outputs import Outputs, Shapes


class CATKD(Distiller):
    """Cross-entropy + beta x the squared error of pooled class activation maps."""

    def __init__(self, student: Shapes, teacher: Shapes, *, beta: float, pooled_size: int, normalise: bool) -> None:
        super().__init__()
        self.beta, self.pooled_size, self.normalise = beta, pooled_size, normalise

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress) -> Losses:
        """{"class_maps"}."""
        maps = class_maps(student), class_maps(teacher)
        return {"class_maps": self.beta * class_map_loss(*maps, self.pooled_size, normalise=self.normalise)}


def class_maps(outputs: Outputs) -> Tensor:
    """N, K, h, w: the classifier at each position, whose mean over positions is the logits.

    The paper swaps pooling and classifier, which are both linear: a model as it is gives the same maps.
    """
    if outputs.final.shape[-2:] == (1, 1):
        raise UserError(
            "E_METHOD_FIT",
            "catkd: a network's last map has one position, so that its class maps are its logits: use kd",
        )
    classifier = outputs.classifier
    return F.conv2d(outputs.final, classifier.weight.flatten(1)[:, :, None, None], classifier.bias)
