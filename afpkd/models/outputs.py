"""What every network of ours returns, and how prompts act inside one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Refine = Callable[[int, Tensor], Tensor]
"""`refine(level, feature) -> feature` of the same shape: called once a level, before the stage's last ReLU."""


class Outputs(NamedTuple):
    """One forward pass.

    logits: N, K class scores.
    features: one map a stage, shallow to deep, each N, C, H, W, *before* the stage's last ReLU: the pre-activation
        target that ReviewKD and AFPKD imitate.
    pooled: N, C, the vector that enters the classifier.
    final: N, C, h, w, the map whose mean over positions is `pooled`.
    classifier: the linear layer (or 1x1 convolution) that turns `pooled` into logits and, position by position, `final`
        into class maps.
    """

    logits: Tensor
    features: list[Tensor]
    pooled: Tensor
    final: Tensor
    classifier: nn.Linear | nn.Conv2d

    def in_float32(self) -> Outputs:
        """Logits that mixed precision left in half precision as float32, where losses are computed; features stay."""
        return self._replace(logits=self.logits.float())

    def without_maps(self) -> Outputs:
        """What the network says, for keeping: the maps, which take the memory, without their channels."""
        return self._replace(features=[_sized(each) for each in self.features], final=_sized(self.final))

    def imitated(self) -> list[Tensor]:
        """What a student imitates, shallow to deep: the maps, and the pooled vector as a 1x1 map (as ReviewKD)."""
        return [*self.features, self.pooled[:, :, None, None]]

    def activated(self) -> list[Tensor]:
        """The same behind the ReLU, where the pooled vector lies already: what ReviewKD's code takes of a student."""
        return [*map(F.relu, self.features), self.pooled[:, :, None, None]]


class Detections(NamedTuple):
    """One forward pass of a detector, A locations over all levels of its pyramid.

    logits: N, A, K class scores. distances: N, A, 4, to the left, top, right and bottom edge of the box, in strides of
    the level. centerness: N, A, 1, a logit.
    features: the levels of the pyramid, fine to coarse, each N, C, H, W: what enters the head.
    """

    logits: Tensor
    distances: Tensor
    centerness: Tensor
    features: list[Tensor]

    def in_float32(self) -> Detections:
        """The head's output as float32, where losses are computed; features stay."""
        return self._replace(
            logits=self.logits.float(), distances=self.distances.float(), centerness=self.centerness.float()
        )

    def without_maps(self) -> Detections:
        """What the network says, for keeping: the maps, which take the memory, without their channels."""
        return self._replace(features=[_sized(each) for each in self.features])

    def imitated(self) -> list[Tensor]:
        """What a student imitates: the levels of the pyramid."""
        return self.features


AnyOutputs = Outputs | Detections


def joined(passes: Sequence[AnyOutputs]) -> Any:
    """The outputs of several passes of one network as those of one, image after image."""
    return type(passes[0])(*(_joined(fields) for fields in zip(*passes, strict=True)))


def _joined(fields: Sequence[Any]) -> Any:
    if isinstance(fields[0], Tensor):
        return torch.cat(list(fields))
    if isinstance(fields[0], list):
        return [torch.cat(level) for level in zip(*fields, strict=True)]
    return fields[0]  # the classifier


def _sized(feature: Tensor) -> Tensor:
    """N, 0, H, W: boxes are told from the sizes of the maps."""
    return feature.new_empty(len(feature), 0, *feature.shape[-2:])


class Shapes(NamedTuple):
    """What a distiller must know of a network to size its adapters: probed, never written by hand."""

    channels: list[int]
    sizes: list[tuple[int, int]]
    pooled: int | None
    """Channels of the pooled vector; None of a detector, which has none."""
    num_classes: int

    def at(self, levels: Sequence[int]) -> Shapes:
        """These levels only, in this order."""
        channels, sizes = [self.channels[level] for level in levels], [self.sizes[level] for level in levels]
        return self._replace(channels=channels, sizes=sizes)

    def imitated_channels(self) -> list[int]:
        """Channels of `Outputs.imitated`."""
        return self.channels if self.pooled is None else [*self.channels, self.pooled]

    def imitated_sizes(self) -> list[tuple[int, int]]:
        """Sizes of `Outputs.imitated`."""
        return self.sizes if self.pooled is None else [*self.sizes, (1, 1)]


def average_pooled(final: Tensor) -> Tensor:
    """Mean over all positions of N, C, h, w -> N, C, by a pool of fixed size: what an exported file needs.

    An adaptive pool becomes a ReduceMean, which NVIDIA's DLA does not know; without `int` torch's older exporter, the
    only one that writes opset 17, takes the size for a variable.
    """
    return F.avg_pool2d(final, (int(final.shape[-2]), int(final.shape[-1]))).flatten(1)
