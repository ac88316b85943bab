"""The network as it travels: images in, one tensor out: logits, or a detector's boxes and scores."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from afpkd.models.outputs import Detections
from afpkd.models.wrapped import bare_network, logits_of

LOGITS, DETECTIONS = "logits", "detections"
"""What the output is called: N, K, or N, A, 4 + K."""


def output_name(model: nn.Module) -> str:
    """How the output of `model` is called."""
    return DETECTIONS if getattr(model, "detects", False) else LOGITS


def logits_only(model: nn.Module) -> LogitsOnly:
    """Copy `model` to the CPU in eval mode, cut down to its logits; `model` stays as it is."""
    # Channels-last weights would give the exported nodes other names, so the same weights other bytes.
    network = copy.deepcopy(bare_network(model)).cpu().to(memory_format=torch.contiguous_format)
    return LogitsOnly(network).eval()


class LogitsOnly(nn.Module):
    """float32 N, C, H, W, normalised -> logits N, K, or of a detector its decoded boxes and scores N, A, 4 + K.

    The features that a distiller reads do not travel.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Run the network and keep the logits."""
        outputs = self.model(x)
        if isinstance(outputs, Detections):
            from afpkd.models.fcos import raw_detections

            return raw_detections(outputs)
        return logits_of(outputs)
