"""FCOS: Tian et al., "FCOS: a simple and strong anchor-free object detector" (TPAMI 2022): torchvision's, opened up.

Neck, head, assignment and losses are torchvision's own (parameter names too: its checkpoints load). Ours: backbones of
several sizes with a neck and head of any width, the pyramid's levels as features that a student can imitate and prompts
can act on, one input size for a whole batch, and a decoded output that can be exported.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from afpkd.checkpoint import load_weights
from afpkd.distributed import averaged, num_processes
from afpkd.errors import UserError
from afpkd.models.foreign import timm_library
from afpkd.models.outputs import Detections, Refine
from afpkd.record import expanded

STRIDES = (8, 16, 32, 64, 128)
"""Pixels of the input between the locations of P3 to P7."""

_RADIUS = 1.5  # of centre sampling, in strides
_GROUPS = 32  # of the head's GroupNorm: the width is a multiple of it


class FcosDetector(FCOS):  # type: ignore[misc]  # torchvision ships no types
    """A backbone's name, `width` channels in neck and head, `num_convs` convolutions a branch of the head."""

    detects = True

    def __init__(self, backbone: str, *, width: int, num_convs: int, num_classes: int) -> None:
        assert width % _GROUPS == 0 and width > _GROUPS, "a group of one channel has nothing to normalise on a 1x1 map"
        neck = _with_pyramid(backbone, width)
        super().__init__(neck, num_classes, head=_Head(width, 1, num_classes, num_convs))
        nn.init.ones_(self.head.regression_head.bbox_reg.bias)  # boxes start one stride wide to each side
        self.backbone_name = backbone
        self.frozen_norms = False

    def forward(self, x: Tensor, refine: Refine | None = None) -> Detections:
        """N, 3, H, W normalised -> the head's raw output; `refine` may change each level of the pyramid on its way."""
        features = list(self.backbone(x).values())
        if refine is not None:
            features = [refine(level, feature) for level, feature in enumerate(features)]
        found = self.head(features)
        return Detections(found["cls_logits"], found["bbox_regression"], found["bbox_ctrness"], features)

    def losses(
        self, outputs: Detections, targets: list[dict[str, Tensor]], range_divisor: float = 1.0
    ) -> dict[str, Tensor]:
        """Focal loss, GIoU loss and centerness of one batch, each divided by the number of locations on objects.

        targets: an image each: `boxes` M, 4 in pixels of the input, `labels` int64 M, 0-based.
        range_divisor: FCOS deals objects to levels by their size (P3: up to 64 pixels from a location to the farthest
            side, P4: 128, ...), for images of 800 pixels; these ranges are divided by it. Centre sampling stays as is.
        """
        head = {
            "cls_logits": outputs.logits,
            "bbox_regression": outputs.distances,
            "bbox_ctrness": outputs.centerness,
        }
        sizes = [feature.shape[-2] * feature.shape[-1] for feature in outputs.features]
        cells = location_cells(outputs.features)
        self.head.range_divisor, self.center_sampling_radius = range_divisor, _RADIUS * range_divisor
        dealt = widened(cells, 1 / range_divisor)  # torchvision's ranges are multiples of a cell's width
        found = self.compute_loss(targets, head, [dealt] * len(targets), sizes)
        return {
            "classification": found["classification"],
            "boxes": found["bbox_regression"],
            "centerness": found["bbox_ctrness"],
        }

    def load_backbone(self, source: str, folders: tuple[Path, ...] = ()) -> str:
        """Start the backbone from published weights, and say so; its BatchNorms are frozen then.

        source: `torchvision:NAME` (`IMAGENET1K_V2`), `timm:NAME` (`resnet50.a1_in1k`), or a file of a whole classifier
        of this backbone, looked for in `folders`. UserError where it cannot be had or does not fit.
        """
        body = self.backbone.body
        whole = _classifier(self.backbone_name)
        if source.startswith("torchvision:"):
            state = _from_torchvision(self.backbone_name, source.removeprefix("torchvision:"))
            whole.load_state_dict(state)
            told = f"backbone: {source}"
        elif source.startswith("timm:"):
            state = _from_timm(self.backbone_name, source.removeprefix("timm:"))
            _load_fitting(whole, state, source)
            told = f"backbone: {source}"
        else:
            told = f"backbone: {load_weights(whole, _found(source, folders))}"
        own = whole if self.backbone_name.startswith("resnet") else whole.features
        body.load_state_dict({name: own.state_dict()[name] for name in body.state_dict()})
        self.freeze_norms()
        return told

    def freeze_norms(self) -> None:
        """Keep the backbone's BatchNorms as they are: a detector's batches are too small for their statistics."""
        self.frozen_norms = True
        for module in self.backbone.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FcosDetector:
        """Frozen BatchNorms stay in eval mode."""
        super().train(mode)
        if self.frozen_norms:
            for module in self.backbone.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class _Head(FCOSHead):  # type: ignore[misc]  # torchvision ships no types
    """The head, whose losses are those of the whole batch where several processes share it."""

    range_divisor = 1.0
    """The cells that it is given are narrower by this: they dealt objects to levels; boxes are in strides."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Torchvision divides by the locations on objects of these images; here by the mean of all processes."""
        cells = [widened(narrow, self.range_divisor) for narrow in anchors]
        found: dict[str, Tensor] = super().compute_loss(targets, head_outputs, cells, matched_idxs)
        if num_processes() == 1:
            return found
        on_objects = torch.stack([(matched >= 0).sum() for matched in matched_idxs]).sum().float()
        share = on_objects.clamp_min(1) / averaged(on_objects).clamp_min(1 / num_processes())
        return {name: loss * share for name, loss in found.items()}


def raw_detections(outputs: Detections) -> Tensor:
    """N, A, 4 + K: at each location its box (left, top, right, bottom in pixels) and K scores in 0..1.

    score = sqrt(class probability x centerness), as torchvision has it; non-maximum suppression is the host's.
    """
    scores = torch.sqrt(torch.sigmoid(outputs.logits) * torch.sigmoid(outputs.centerness))
    return torch.cat([boxes_of(outputs), scores], dim=-1)


def boxes_of(outputs: Detections) -> Tensor:
    """N, A, 4: the box at each location, in pixels of the input."""
    cells = location_cells(outputs.features)
    centres, strides = (cells[:, :2] + cells[:, 2:]) / 2, cells[:, 2:] - cells[:, :2]
    near, far = torch.split(outputs.distances * torch.cat([strides, strides], dim=1), 2, dim=-1)
    return torch.cat([centres - near, centres + far], dim=-1)


def location_cells(features: list[Tensor]) -> Tensor:
    """The cell of each location of P3 to P7, A, 4 in pixels, centred on it, as wide as the level's stride.

    Fixed strides, where torchvision divides the input by the map: the two agree where 128 divides the input.
    """
    cells = []
    for stride, feature in zip(STRIDES, features, strict=True):
        height, width = int(feature.shape[-2]), int(feature.shape[-1])
        down, across = (torch.arange(size, device=feature.device).float() * stride for size in (height, width))
        y, x = torch.meshgrid(down, across, indexing="ij")
        centres = torch.stack([x, y], dim=-1).reshape(-1, 2)
        cells.append(torch.cat([centres - stride / 2, centres + stride / 2], dim=1))
    return torch.cat(cells)


def widened(cells: Tensor, factor: float) -> Tensor:
    """Cells A, 4 around the same centres, `factor` times as wide and high."""
    centres, halves = (cells[:, :2] + cells[:, 2:]) / 2, (cells[:, 2:] - cells[:, :2]) / 2 * factor
    return torch.cat([centres - halves, centres + halves], dim=1)


def _classifier(backbone: str) -> Any:
    return getattr(models, backbone)(weights=None)


def _with_pyramid(backbone: str, width: int) -> BackboneWithFPN:
    """P3, P4, P5 from the stages of stride 8, 16, 32, and P6, P7 from P5 by strided convolutions."""
    body = _classifier(backbone)
    if backbone.startswith("resnet"):
        layers = {f"layer{number}": str(number - 2) for number in (2, 3, 4)}
        deepest = body.fc.in_features
        channels = [deepest // 4, deepest // 2, deepest]
    else:  # MobileNetV3, whose strided blocks torchvision marks: the last block before each
        body = body.features
        strided = [index for index, block in enumerate(body) if getattr(block, "_is_cn", False)]
        chosen = [strided[-2] - 1, strided[-1] - 1, len(body) - 1]
        layers = {str(index): str(number) for number, index in enumerate(chosen)}
        channels = [body[index].out_channels for index in chosen]
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # MobileNetV3's 0.01 is for ImageNet's schedule: thousands of steps lag behind here
    return BackboneWithFPN(body, layers, channels, width, LastLevelP6P7(width, width))


def _from_torchvision(backbone: str, name: str) -> dict[str, Tensor]:
    published = models.get_model_weights(backbone)
    if name not in published.__members__:
        raise UserError(
            "E_WEIGHTS_PUBLISHED", f"backbone torchvision:{name}: {backbone} has {', '.join(published.__members__)}"
        )
    weights = published[name]
    return _fetched(partial(weights.get_state_dict, progress=False, check_hash=True), f"torchvision:{name}")


def _from_timm(backbone: str, name: str) -> dict[str, Tensor]:
    """Of the model of this very name: those of seresnet50 and resnetaa50 fit a resnet50 too, and are another's."""
    timm, model = timm_library(), name.partition(".")[0]
    if not timm.is_model(model):
        raise UserError("E_NETWORK_NAME", f"backbone timm:{name}: timm knows no such model")
    if model != backbone:
        told = f"backbone timm:{name}: weights of {model}, and the backbone is a {backbone}"
        raise UserError("E_WEIGHTS_MISMATCH", f"{told}: name timm:{backbone}.TAG, or torchvision:NAME")
    return _fetched(lambda: timm.create_model(name, pretrained=True).state_dict(), f"timm:{name}")


def _fetched(fetch: Any, what: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = fetch()
    except Exception as error:  # urllib's, the hub client's and its backends' errors share no base
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            "E_WEIGHTS_PUBLISHED",
            f'backbone {what}: cannot be fetched ({line}): name a file that you have, or set backbone = "none"',
        ) from None
    return state


def _load_fitting(whole: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = whole.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if wrong:
        raise UserError(
            "E_WEIGHTS_MISMATCH",
            f"backbone {source}: does not fit ({len(wrong)} of {len(own)} tensors, {wrong[0]} for one)",
        )
    whole.load_state_dict({name: state[name] for name in own})


def _found(source: str, folders: tuple[Path, ...]) -> Path:
    places = [folder / expanded(source) for folder in (*folders, Path())]
    for place in places:
        if place.is_file():
            return place
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise UserError(
        "E_WEIGHTS_MISSING", f"backbone {source}: no file at {looked}: name a file, torchvision:NAME, timm:NAME or none"
    )
