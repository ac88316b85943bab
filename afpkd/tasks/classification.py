"""Image classification: cross-entropy on class indices, top-1 accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.data.batches import Pixels
from afpkd.evaluate import top1
from afpkd.losses import soft_target_loss
from afpkd.models.outputs import Outputs
from afpkd.tasks.task import Forward, Scores


class Classification:
    """One class an image."""

    metric = "top1"
    num_judged = 1000

    def losses(self, model: nn.Module, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        """{"task"}: cross-entropy of logits N, K with class indices N."""
        return {"task": F.cross_entropy(outputs.logits, target)}

    def changed(self, outputs: Outputs, clean: Outputs, temperature: float) -> Tensor:
        """T^2 KL(clean || outputs) of the classes, the mean over the images."""
        return soft_target_loss(outputs.logits, clean.logits, temperature)

    def agreement(self, outputs: Outputs, clean: Outputs) -> float:
        """Percent of the images that get the same class."""
        same = int((outputs.logits.argmax(1) == clean.logits.argmax(1)).sum())
        return same * 100 / len(clean.logits)

    def scores(self, forward: Forward, samples: Pixels) -> Scores:
        """{"top1"}."""
        return {"top1": top1(lambda images: forward(images).logits, samples)}
