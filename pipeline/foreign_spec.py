"""SPEC.toml: what must be known of a model that the pipeline did not train, to export and measure it. No torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

from afpkd.toml_file import read_toml
from pipeline.recipe_outputs import STRICT, Export
from pipeline.recipe_reader import first_mistake


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Input:
    """What the network wants to see: (pixels / 255 - mean) / std."""

    size: int | tuple[int, int]
    """Pixels per side, or [height, width]."""
    mean: tuple[float, ...]
    """Mean of each channel of pixel / 255; one (grey) or three (RGB) values."""
    std: tuple[float, ...]
    """Standard deviation of each channel of pixel / 255."""
    layout: Literal["NCHW"] = "NCHW"
    """Order of the input's dimensions."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(f"mean: 1 or 3 channels, and as many as std, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std: must be positive, got {self.std}")
        if min(self.image_size) < 1:
            raise ValueError(f"size: must be positive, got {self.size}")

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Weights:
    """Where the state dict lies in the weights file."""

    key: str = ""
    """Dotted path to it, such as `state_dict` or `model.ema`; empty: found by itself."""
    strip_prefix: str = ""
    """What every name begins with and the model's names do not, such as `module.`; empty: `module.` alone is found."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """The images on which the files are checked and calibrated."""

    kind: Literal["folder"]
    """folder: `path/split/<class>/*.png`, any image format."""
    path: str
    """Folder, relative to the spec."""
    split: str
    """The folder below `path` on which accuracy is measured."""
    calibration_split: str | None = None
    """The folder below `path` from which int8 is calibrated; missing: images of `split`, and the manifest says so."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """Everything about a foreign model."""

    num_classes: int
    """Outputs of the network, and folders of classes."""
    input: Input
    data: Data
    weights: Weights = field(default_factory=Weights)
    export: Export = field(default_factory=Export)
    """Which files are written: the keys of a recipe's [export]."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.num_classes < 2:
            raise ValueError(f"num_classes: must be 2 or more, got {self.num_classes}")


def read_spec(path: Path) -> Spec:
    """Read SPEC.toml; UserError with one line that names file, key and what was expected."""
    raw = read_toml(path)
    try:
        return pydantic.TypeAdapter(Spec).validate_json(json.dumps(raw, default=str))
    except pydantic.ValidationError as error:
        raise first_mistake(path.name, error, _keys_of) from None


def _keys_of(section: list[str]) -> list[str]:
    kinds: dict[str, Any] = {"input": Input, "data": Data, "weights": Weights, "export": Export}
    return [f.name for f in dataclasses.fields(kinds.get(section[0], Spec) if section else Spec)]
