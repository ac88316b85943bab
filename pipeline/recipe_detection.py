"""The sections of a recipe that detects objects: scenes in COCO's format, detectors as teacher and student."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic.dataclasses import dataclass

from afpkd.distillers.options import OPTIONS
from afpkd.models import DETECTORS
from afpkd.record import digest, sha256_of
from afpkd.settings import TrainSettings, require_between
from pipeline.recipe import Distill, known
from pipeline.recipe_outputs import STRICT

COCO = "coco"
"""`data.name` of scenes in COCO's format."""

Arch = Annotated[str, known("detector", DETECTORS)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Split:
    """One annotation file and the folder of its images; paths absolute, or relative to the recipe or to AFPKD_DATA."""

    annotations: str
    """COCO JSON."""
    images: str
    """Folder."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CocoData:
    """Which scenes, and what happens to them before the network sees them."""

    name: Literal["coco"]
    """Data set: this kind."""
    train: Split
    """What is taught."""
    test: Split
    """Read at each training's end and to check files: it chooses nothing."""
    heldout: int | Split
    """What epochs and hyper-parameters are chosen on: a split, or so many training images at random (seeded)."""
    image_size: tuple[int, int]
    """Height and width of the canvas on which every image is letterboxed: what the exported file takes."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each channel of pixel / 255 (default: ImageNet's, as published backbones have it)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel of pixel / 255."""
    scales: tuple[float, float] = (1.0, 1.0)
    """Multi-scale training: each letterboxed image is scaled by a random factor between these."""
    flip: bool = True
    """Mirror half of the training images."""
    repeat: int = 1
    """An epoch shows each training image so many times: small sets are then scored less often."""
    range_divisor: float = 1.0
    """FCOS deals objects to the levels of its pyramid by their size, for images of 800 pixels. These sizes are divided
    by this: on a small canvas all objects would lie on the finest level, and the others would learn nothing."""
    score: float = 0.05
    """Non-maximum suppression: detections that score less are none."""
    iou: float = 0.6
    """Non-maximum suppression: of two boxes of one class that overlap more, the better one stays."""
    most: int = 100
    """At most so many detections per image."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if min(self.std) <= 0:
            raise ValueError(f"std: must be positive, got {self.std}")
        if min(self.image_size) < 64 or max(self.image_size) > 8192:
            raise ValueError(f"image_size: height and width between 64 and 8192 were expected, got {self.image_size}")
        if not 0.1 <= self.scales[0] <= self.scales[1] <= 10:
            raise ValueError(f"scales: a smaller and a larger factor between 0.1 and 10, got {self.scales}")
        if isinstance(self.heldout, int) and self.heldout < 1:
            raise ValueError(f"heldout: at least one training image, got {self.heldout}")
        if isinstance(self.heldout, Split) and self.heldout.annotations == self.test.annotations:
            raise ValueError("heldout: the file of test: epochs would be chosen on what judges them: give a number")
        bounds = (("score", 0, 1), ("iou", 0, 1), ("most", 1, 1000), ("repeat", 1, 1000), ("range_divisor", 1, 16))
        for key, least, most in bounds:
            require_between(key, getattr(self, key), least, most)

    @property
    def num_fitted(self) -> None:
        """How many scenes are trained on, their annotation file says."""
        return

    @property
    def places(self) -> set[str]:
        """Keys that say where the scenes lie."""
        return {"train", "test", *(["heldout"] if isinstance(self.heldout, Split) else [])}

    def content(self) -> list[str]:
        """What the stages' identity holds beside these keys: the annotations, and names and sizes of the images."""
        splits = [self.train, self.test, *([self.heldout] if isinstance(self.heldout, Split) else [])]
        return [_content(split.annotations, split.images) for split in splits]


@functools.cache
def _content(annotations: str, images: str) -> str:
    """Once a process. Where nothing lies there yet the place stands for it: the stage that reads it says so."""
    if not Path(annotations).is_file():
        return annotations
    files = sorted((path.relative_to(images).as_posix(), path.stat().st_size) for path in _files(images))
    return digest([sha256_of(Path(annotations)), files])


def _files(folder: str) -> Iterator[Path]:
    return (path for path in Path(folder).rglob("*") if path.is_file())


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainedDetector(TrainSettings):
    """A detector as teacher, trained here first (`data.name = "coco"`)."""

    weights: ClassVar[str] = "none"
    stages: ClassVar[tuple[str, ...]] = ()
    mean: ClassVar[None] = None
    std: ClassVar[None] = None
    """Its levels are its own, and it wants what [data] says."""
    arch: Arch
    """Detector."""
    backbone: str = "none"
    """Where its backbone starts: none (at random), torchvision:NAME, timm:NAME, or a file of a whole classifier."""
    min_ap50: float = 0.0
    """AP50 on test in percent below which nothing is distilled from it."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        TrainSettings.__post_init__(self)
        require_between("min_ap50", self.min_ap50, 0, 100)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ForeignDetector:
    """A detector as teacher whose weights come from elsewhere (`data.name = "coco"`)."""

    stages: ClassVar[tuple[str, ...]] = ()
    mean: ClassVar[None] = None
    std: ClassVar[None] = None
    """Its levels are its own, and it wants what [data] says."""
    arch: Arch
    """Detector."""
    weights: str
    """File (.safetensors, .pt, .pth): absolute, or relative to the recipe file, or to AFPKD_DATA."""
    min_ap50: float = 0.0
    """AP50 on test in percent below which nothing is distilled from it."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_between("min_ap50", self.min_ap50, 0, 100)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillDetector(Distill):
    """Phase 2 of a detector (`data.name = "coco"`): the student, how it is trained, and the method with its options."""

    student: Arch
    """Detector."""
    backbone: str = "none"
    """Where its backbone starts: none (at random), torchvision:NAME, timm:NAME, or a file of a whole classifier."""

    def __post_init__(self) -> None:
        """Refuse what no detector can be distilled by."""
        Distill.__post_init__(self)
        if "none" not in (self.weights, self.backbone):
            raise ValueError(
                f"backbone: {self.backbone} would replace a part of {self.weights}: leave one out, or weights = 'none'"
            )
        if OPTIONS[self.method].needs_logits:
            fitting = [name for name, options in OPTIONS.items() if not options.needs_logits]
            raise ValueError(
                f"method: {self.method} compares a classifier's logits: a detector has {', '.join(fitting)}"
            )
        if getattr(self, "kappa", 0):
            raise ValueError("kappa: the logit term is a classifier's: leave it out")
        if getattr(self, "activated", False):
            raise ValueError("activated: no ReLU ends the levels of a detector's neck: leave it out")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExpectedAp:
    """A published number of a detector (`data.name = "coco"`)."""

    ap: float
    """AP in percent."""
    source: str
    """Who says so."""
