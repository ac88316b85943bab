"""Image classification: cross-entropy on class indices, top-1 accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from afpkd.models.outputs import Outputs


def task_loss(outputs: Outputs, labels: Tensor) -> Tensor:
    """Cross-entropy of logits N, K with class indices N, the mean over the batch, in nats."""
    return F.cross_entropy(outputs.logits, labels)
