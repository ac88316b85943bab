"""Recipe = data + teacher + prompts + distill + export + profile: strict, typed, no torch.

Each stage's identity is the digest of its own part; device, paths, threads and cluster are never identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic.dataclasses import dataclass

from afpkd.data import DATASETS
from afpkd.data.dataset import DatasetSpec
from afpkd.distillers.options import OPTIONS
from afpkd.models.user_file import what_it_names
from afpkd.names import unknown
from afpkd.record import Json, digest, sha256_of
from afpkd.settings import TrainSettings, require_between
from pipeline.recipe_folder import FolderData
from pipeline.recipe_networks import Arch, ForeignTeacher, TrainedTeacher, check_network, require_channels
from pipeline.recipe_outputs import STRICT, Expected, Export, Profile
from pipeline.recipe_prompts import Prompts

ROLES = ("teacher", "student", "undistilled")
STAGE_VERSIONS = {"teacher": 2, "prompts": 2, "student": 3, "undistilled": 2, "export": 6, "profile": 3, "report": 6}
"""Raised when the code of a stage changes what it makes: the stage and all that follows run again."""


def known(what: str, names: dict[str, Any]) -> pydantic.AfterValidator:
    """Refuse a name that is not among `names`, naming the nearest."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(unknown(what, name, names))
        return name

    return pydantic.AfterValidator(check)


_ADDED_KEYS: Json = {
    "stages": (),
    "mean": None,
    "std": None,
    "weights": "none",
    "rotation": 0.0,
    "dropped": "zero",
    "relative": False,
    "activated": False,
    "lr_warm_up": 0,
}
"""Keys that are no part of a stage's identity while they have these values: recipes from before them keep theirs."""

_TRAINING_ALONE = {"flip", "crop_padding", "crop_scale", "rotation", "scales", "repeat", "range_divisor"}
"""Keys of [data] for training alone: no exported file depends on them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Which images, and what happens to them before the network sees them."""

    name: Annotated[str, known("data set", DATASETS)]
    """Data set."""
    mean: tuple[float, ...]
    """Mean of each channel of pixel / 255; of all networks of the recipe, so a foreign teacher's own values."""
    std: tuple[float, ...]
    """Standard deviation of each channel of pixel / 255."""
    heldout: int
    """Training images set aside at random (seeded): epochs and hyper-parameters are chosen on them, never on test."""
    crop_padding: int = 4
    """Black pixels on each side before the random crop; 0 = no crop."""
    flip: bool = True
    """Mirror half of the training images."""
    rotation: float = 0.0
    """Training images are turned by up to so many degrees either way."""

    def __post_init__(self) -> None:
        """Refuse what does not fit the data set."""
        spec = DATASETS[self.name]
        for key in ("mean", "std"):
            if len(getattr(self, key)) != spec.in_channels:
                raise ValueError(f"{key}: {self.name} has {spec.in_channels} channel(s), got {len(getattr(self, key))}")
        if min(self.std) <= 0:
            raise ValueError(f"std: must be positive, got {self.std}")
        if not 0 < self.heldout < spec.num_train:
            raise ValueError(f"heldout: must lie between 0 and {spec.num_train} training images, got {self.heldout}")
        if not 0 <= self.crop_padding < min(spec.image_size):
            raise ValueError(f"crop_padding: must lie between 0 and the image size, got {self.crop_padding}")
        require_between("rotation", self.rotation, 0, 180)

    @property
    def spec(self) -> DatasetSpec:
        """What is known of the data set without reading it."""
        return DATASETS[self.name]

    @property
    def num_fitted(self) -> int:
        """How many images are trained on."""
        return self.spec.num_train - self.heldout

    def num_heldout(self, num_train: int) -> int:
        """Of so many training images, those set aside."""
        return self.heldout

    @property
    def crop_scale(self) -> float:
        """No random crop of a part of an image: small images are cropped by `crop_padding`."""
        return 1.0

    @property
    def places(self) -> set[str]:
        """Keys that say where images lie: none."""
        return set()

    def content(self) -> list[str]:
        """What the stages' identity holds beside these keys: nothing, since the data set is known by its name."""
        return []


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Distill(TrainSettings):
    """Phase 2: the student, how it is trained, and the method with its options."""

    student: Arch
    """Model."""
    method: str
    """Distillation method."""
    weights: str = "none"
    """Where training starts: none = at random; default = at the weights that timm or torchvision publish; or a file."""
    stages: tuple[str, ...] = ()
    """Of a foreign network: the modules that end its stages, shallow to deep; empty: found by themselves."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        TrainSettings.__post_init__(self)
        check_network(self, self.student)
        if self.method not in OPTIONS:
            raise ValueError(f"method: {unknown('method', self.method, OPTIONS)}")
        options = vars(OPTIONS[self.method](**self.options()))
        for key, value in options.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            require_between(key, value, 1e-3 if key == "temperature" else 0, 1 if key == "warm_up" else 1e6)
        weights = [options[key] for key in OPTIONS[self.method].loss_weights]
        if weights and not any(weights):
            raise ValueError(f"method: every loss of {self.method} has weight 0: it would distil nothing")

    def options(self) -> Json:
        """The method's own options."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(OPTIONS[self.method])}

    def training(self) -> Json:
        """What an undistilled student shares: everything but the method and its options."""
        mine = {"method", *self.options()}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in mine}

    @property
    def uses_prompts(self) -> bool:
        """Whether the method needs phase 1."""
        return OPTIONS[self.method].uses_prompts


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """Everything that identifies a run."""

    data: Data | FolderData
    teacher: TrainedTeacher | ForeignTeacher
    distill: Distill
    prompts: Prompts = field(default_factory=Prompts)
    export: Export = field(default_factory=Export)
    profile: Profile = field(default_factory=Profile)
    seed: int = 0
    description: str = ""
    expected: dict[str, Expected] = field(default_factory=dict)
    """Published numbers to stand beside ours in the report: `[expected.NAME] top1, source`."""
    rivals: Any = None
    """Other methods' options for this pair, `[rivals.METHOD]`: for recipes that extend this one and name the method."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        require_between("seed", self.seed, 0, 2**32 - 1)
        OPTIONS[self.distill.method].require_prompts(united=self.prompts.united, gate=self.prompts.gate)
        require_channels(self.teacher.mean, self.data)
        if self.data.num_fitted is not None and (told := self.too_large_batch(self.data.num_fitted)):
            raise ValueError(told)

    @property
    def trained(self) -> list[str]:
        """The sections of what is trained, or taken as it is."""
        return ["teacher", *(["prompts"] if self.distill.uses_prompts else []), "distill"]

    def too_large_batch(self, num_train: int) -> str | None:
        """Which section asks for more images a step than there are, in words."""
        for section in self.trained:
            if (size := getattr(getattr(self, section), "batch_size", 0)) > num_train:
                return f"{section}.batch_size: {size} is more than the {num_train} images trained on"
        return None

    def stage_digest(self, stage: str) -> str:
        """Identity of one stage: its version and its own part of the recipe, nothing else."""
        calibration_seed = self.seed if "int8" in self.export.precisions else None
        parts: Json = {
            "teacher": [*self._data(), self._teacher(), self.seed],
            "prompts": [*self._data(), self._prompts(), self.seed],
            "student": [*self._data(), _identity(dataclasses.asdict(self.distill)), self.seed, *self._demand()],
            "undistilled": [*self._data(), _identity(self.distill.training()), self.seed],
            "export": [*self._data(_TRAINING_ALONE), dataclasses.asdict(self.export), calibration_seed],
            "profile": dataclasses.asdict(self.profile),
            "report": [self.description, {name: dataclasses.asdict(found) for name, found in self.expected.items()}],
        }
        return digest([stage, STAGE_VERSIONS[stage], parts[stage]])

    def _demand(self) -> list[Any]:
        """With which prompts the student is distilled at all (demanded anew, it is asked anew), what untuned ones are,
        which no stage `prompts` says, and what came later.
        """
        asked = ["any prompts"] if self.distill.uses_prompts and not self.prompts.must_choose else []
        untrained = [self.prompts.shape()] if self.distill.options().get("mask") == "untrained" else []
        detects = not isinstance(self.data, Data | FolderData)
        adapted = detects and OPTIONS[self.distill.method].imitates_maps
        return [*asked, *untrained, *(["adapters start with the teacher's channels"] if adapted else [])]

    def _data(self, left: Set[str] = frozenset()) -> list[Any]:
        """The images count, not where they lie. left: further keys that do not count."""
        keys = _identity(dataclasses.asdict(self.data))
        return [{key: keys[key] for key in keys.keys() - self.data.places - left}, *self.data.content()]

    def _prompts(self) -> Json:
        """All but whether their masks must choose, which changes none."""
        return _identity({**dataclasses.asdict(self.prompts), "must_choose": True})

    def _teacher(self) -> Json:
        """All but the accuracy it must have, and a foreign one's file, whose content is an input of its stage."""
        keys = dataclasses.asdict(self.teacher)
        adopted = not isinstance(self.teacher, TrainSettings) and self.teacher.weights != "default"
        left = {"min_top1", "min_ap50", *(["weights"] if adopted else [])}
        return _identity({key: keys[key] for key in keys if key not in left})


def _identity(keys: Json) -> Json:
    """Names of files as the content of these files, and later keys only where they say something."""
    counted = {key: value for key, value in keys.items() if key not in _ADDED_KEYS or value != _ADDED_KEYS[key]}
    for key in counted.keys() & {"arch", "student"}:
        counted[key] = what_it_names(counted[key])
    for key in counted.keys() & {"weights", "backbone"}:
        path = Path(counted[key])
        if path.is_absolute() and path.is_file():  # as the recipe's reader leaves a file that it finds
            counted[key] = sha256_of(path)
    return counted
