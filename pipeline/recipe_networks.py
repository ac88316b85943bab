"""Teachers in a recipe: trained here, or with weights from elsewhere; and what may be a model's name."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any

import pydantic
from pydantic.dataclasses import dataclass

from afpkd.models import MODELS, is_foreign
from afpkd.models.user_file import is_user_file
from afpkd.names import unknown
from afpkd.settings import TrainSettings, require_between
from pipeline.recipe_outputs import STRICT


def _known_arch(name: str) -> str:
    if not is_foreign(name) and name not in MODELS:
        raise ValueError(f"{unknown('model', name, MODELS)}; others: timm:NAME, torchvision:NAME, FILE.py:FUNCTION")
    return name


def is_one(name: Any, other: Any) -> bool:
    """Whether two names are of one model: those of a user's file also where one is its whole path.

    A sweep's point names files by their whole paths, since it lies elsewhere than the recipe that it extends.
    """
    if name == other or not all(isinstance(one, str) and is_user_file(one) for one in (name, other)):
        return bool(name == other)
    beside, whole = sorted((PurePath(name), PurePath(other)), key=PurePath.is_absolute)
    return whole.is_absolute() and not beside.is_absolute() and str(whole).endswith(f"/{beside}")


Arch = Annotated[str, pydantic.AfterValidator(_known_arch)]
Channels = tuple[float, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainedTeacher(TrainSettings):
    """A teacher that is trained here first."""

    arch: Arch
    """Model."""
    weights: str = "none"
    """Where training starts: none = at random; default = at the weights that timm or torchvision publish; or a file."""
    min_top1: float = 0.0
    """Test accuracy in percent below which nothing is distilled from it."""
    stages: tuple[str, ...] = ()
    """Of a foreign network: the modules that end its stages, shallow to deep; empty: found by themselves."""
    mean: Channels | None = None
    """Mean of pixel / 255 that this network wants to see, where it is not that of [data]."""
    std: Channels | None = None
    """Standard deviation of the same."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_network(self, self.arch)
        TrainSettings.__post_init__(self)
        require_between("min_top1", self.min_top1, 0, 100)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ForeignTeacher:
    """A teacher whose weights come from elsewhere."""

    arch: Arch
    """Model."""
    weights: str
    """File (.safetensors, .pt, .pth): absolute, or relative to the recipe file, or to AFPKD_DATA; or default: what
    timm or torchvision publish."""
    min_top1: float = 0.0
    """Test accuracy in percent below which nothing is distilled from it."""
    stages: tuple[str, ...] = ()
    """Of a foreign network: the modules that end its stages, shallow to deep; empty: found by themselves."""
    mean: Channels | None = None
    """Mean of pixel / 255 that this network wants to see, where it is not that of [data]."""
    std: Channels | None = None
    """Standard deviation of the same."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_network(self, self.arch)
        if self.weights == "none":
            raise ValueError("weights: 'none' starts at random: say how to train it (epochs, lr, ...)")
        require_between("min_top1", self.min_top1, 0, 100)


def require_channels(mean: Channels | None, data: Any) -> None:
    """ValueError where a teacher's own normalisation does not fit the images of the section [data]."""
    if mean is None or len(mean) == 1:
        return
    channels = data.channels if hasattr(data, "channels") else data.spec.in_channels
    if len(mean) != channels:
        told = f"the images have {channels} channel(s), got {len(mean)}"
        raise ValueError(f"teacher.mean: {told}: one a channel, or one for all")


def check_network(section: Any, arch: str) -> None:
    """ValueError where the keys of a teacher or a student do not fit its model."""
    if not is_foreign(arch) and section.stages:
        raise ValueError(f"stages: those of {arch} are its own: leave it out")
    if section.weights == "default" and (not is_foreign(arch) or is_user_file(arch)):
        raise ValueError(f"weights: 'default': timm and torchvision publish weights, for {arch} name a file")
    if is_foreign(arch) and getattr(section, "compile", False):
        raise ValueError("compile: not for networks that are not ours, whose features are read by hooks: leave it out")
    if hasattr(section, "mean") and (section.mean is None) != (section.std is None):
        raise ValueError("mean: give mean and std, or neither")
    if getattr(section, "std", None) is not None:
        if min(section.std, default=1.0) <= 0:
            raise ValueError(f"std: must be positive, got {section.std}")
        if not 0 < len(section.mean) == len(section.std):
            raise ValueError(f"mean: {len(section.mean)} values, and std has {len(section.std)}: one a channel of both")
