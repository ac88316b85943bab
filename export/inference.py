"""The network as it travels: images in, logits out, nothing else."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from afpkd.models.wrapped import bare_network


def logits_only(model: nn.Module) -> LogitsOnly:
    """Copy `model` to the CPU in eval mode, cut down to its logits; `model` stays as it is."""
    # Channels-last weights would give the exported nodes other names, so the same weights other bytes.
    network = copy.deepcopy(bare_network(model)).cpu().to(memory_format=torch.contiguous_format)
    return LogitsOnly(network).eval()


class LogitsOnly(nn.Module):
    """float32 N, C, H, W, normalised -> logits N, K: the features that a distiller reads do not travel."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Run the network and keep the logits: a foreign network returns nothing else."""
        outputs = self.model(x)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        return logits
