"""The section [data] of a recipe whose images are your own: `name = "folder"`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Literal

import pydantic
from pydantic.dataclasses import dataclass

from afpkd.data.dataset import DatasetSpec
from afpkd.data.image_folder import Layout, folder_content, folder_spec
from afpkd.errors import UserError
from afpkd.record import Json
from afpkd.settings import require_between
from pipeline.recipe_outputs import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FolderData:
    """Photos in folders, one folder per class, and what happens to them before the network sees them."""

    name: Literal["folder"]
    """Data set."""
    path: str
    """Folder: absolute, or relative to the recipe file, or to AFPKD_DATA."""
    image_size: int | tuple[int, int]
    """Pixels per side, or [height, width]: images are scaled and cropped at the centre to it."""
    channels: Literal[1, 3] = 3
    """3: colour; 1: grey."""
    train: str | None = None
    """Folder of training images below `path`; without it the classes lie in `path` itself."""
    test: str | None = None
    """Folder of test images below `path`."""
    val: str | None = None
    """Folder of images to choose on below `path`; without it `heldout_share` of the training images."""
    test_share: float = 0.2
    """Without `train`: share of each class set aside for test, drawn with `split_seed`."""
    heldout_share: float = 0.1
    """Share of the training images set aside at random (seeded): epochs are chosen on them, never on test."""
    split_seed: int = 0
    """Draws the test images; another `seed` of the recipe keeps them."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel of pixel / 255; without it (and `std`) measured on the training images."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel of pixel / 255."""
    crop_scale: float = 0.35
    """Least share of an image's area that a random crop keeps, scaled back to the whole size; 1 = no such crop."""
    crop_padding: int = 0
    """Black pixels on each side before a random crop of the image's size; 0 = none."""
    rotation: float = 0.0
    """Training images are turned by up to so many degrees either way."""
    flip: bool = True
    """Mirror half of the training images."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 8 <= min(self.size) <= max(self.size) <= 4096:
            raise ValueError(f"image_size: 8 to 4096 pixels a side, got {self.image_size}")
        for key, least, most in (
            ("test_share", 0.01, 0.9),
            ("heldout_share", 0.01, 0.9),
            ("crop_scale", 0.01, 1),
            ("crop_padding", 0, min(self.size) - 1),
            ("rotation", 0, 180),
            ("split_seed", 0, 2**32 - 1),
        ):
            require_between(key, getattr(self, key), least, most)
        if (self.train is None) != (self.test is None) or (self.val is not None and self.train is None):
            raise ValueError("train: train and test name folders together (val is optional), or none of them is given")
        self._refuse_what_would_be_ignored()
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean: give mean and std, or neither: then both are measured on the training images")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{key}: the images have {self.channels} channel(s), got {len(values)}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std: must be positive, got {self.std}")

    def _refuse_what_would_be_ignored(self) -> None:
        if self.test is not None and self.val is not None and Path(self.test) == Path(self.val):
            raise ValueError("val: the folder of test: epochs would be chosen on what judges them: leave val out")
        for key, other in (("test_share", "train"), ("split_seed", "train"), ("heldout_share", "val")):
            if getattr(self, other) is not None and getattr(self, key) != type(self).__dataclass_fields__[key].default:
                raise ValueError(f"{key}: would do nothing beside {other}, which names a folder: leave one of them out")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def layout(self) -> Layout:
        """Which images are for what."""
        return Layout(Path(self.path), self.train, self.val, self.test, self.test_share, self.split_seed)

    @property
    def spec(self) -> DatasetSpec:
        """What is known of the images without decoding them. UserError where they are not as they must be."""
        return folder_spec(self.layout, image_size=self.size, channels=self.channels)

    @property
    def num_fitted(self) -> None:
        """Nobody has counted yet how many images are trained on."""
        return

    def num_heldout(self, num_train: int) -> int:
        """Of so many training images, those set aside: one at least."""
        return max(1, round(self.heldout_share * num_train))

    @property
    def places(self) -> set[str]:
        """Keys that say where the images lie."""
        return {"path"}

    def content(self) -> list[str]:
        """What the stages' identity holds beside these keys: the images themselves, hashed once a process."""
        return [_content(self.layout)]


def folder_in(record: Json) -> FolderData:
    """The images of a role's record, which holds the section as `folder`; UserError where it is none."""
    try:
        return pydantic.TypeAdapter(FolderData).validate_json(json.dumps(record["folder"]))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("folder", *first["loc"])))
        raise UserError("E_RECORD", f"the record's {where}: {first['msg']}: was it made by another version?") from None


_content = functools.cache(folder_content)
