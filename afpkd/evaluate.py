"""Accuracy of a network on a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from afpkd.data.batches import Pixels

Forward = Callable[[Tensor], Tensor]
"""Normalised images N, C, H, W -> logits N, K."""


def predict(forward: Forward, pixels: Pixels, batch_size: int = 500) -> Tensor:
    """Logits N, K of every image of a split, without gradients."""
    with torch.no_grad():
        return torch.cat([forward(pixels.normalised(images)) for images in torch.split(pixels.images, batch_size)])


def top1(forward: Forward, pixels: Pixels) -> float:
    """Top-1 accuracy in percent, 0-100."""
    correct = int((predict(forward, pixels).argmax(dim=1) == pixels.labels).sum())
    return correct * 100 / len(pixels.labels)


def model_top1(model: nn.Module, pixels: Pixels) -> float:
    """Top-1 accuracy in percent of `model` in eval mode; its mode is put back."""
    mode = model.training
    model.eval()
    accuracy = top1(lambda images: model(images).logits, pixels)
    model.train(mode)
    return accuracy
