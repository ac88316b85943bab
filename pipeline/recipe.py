"""Recipe = data + teacher + prompts + distill + export + profile: strict, typed, no torch.

A recipe is a TOML file. An unknown key, a wrong type or an impossible combination is one line that names file, key,
what was expected and the nearest valid name. Each stage's identity is the digest of its own part; device, paths,
threads and cluster are never identity.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

from afpkd.data import DATASETS
from afpkd.data.dataset import DatasetSpec, data_root
from afpkd.distillers.options import LOSS_WEIGHTS, OPTIONS
from afpkd.models import MODELS
from afpkd.record import Json, UserError, digest
from afpkd.settings import TrainSettings, require_between

RECIPES = Path(__file__).parent / "recipes"
ROLES = ("teacher", "student", "undistilled")
STAGE_VERSIONS = {"teacher": 1, "prompts": 1, "student": 1, "undistilled": 1, "export": 1, "profile": 1, "report": 1}
"""Raised when the code of a stage changes what it makes: the stage and all that follows run again."""

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True)


def _known(what: str, names: dict[str, Any]) -> pydantic.AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"unknown {what} '{name}'{_nearest(name, list(names))}")
        return name

    return pydantic.AfterValidator(check)


Arch = Annotated[str, _known("model", MODELS)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Data:
    """Which images, and what happens to them before the network sees them."""

    name: Annotated[str, _known("data set", DATASETS)]
    """Data set."""
    mean: tuple[float, ...]
    """Mean of each channel of pixel / 255; of all networks of the recipe, so a foreign teacher's own values."""
    std: tuple[float, ...]
    """Standard deviation of each channel of pixel / 255."""
    heldout: int
    """Training images set aside at random (seeded): epochs and hyper-parameters are chosen on them, never on test."""
    crop_padding: int = 4
    """Black pixels a side before the random crop; 0 = no crop."""
    flip: bool = True
    """Mirror half of the training images."""

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

    @property
    def spec(self) -> DatasetSpec:
        """What is known of the data set without reading it."""
        return DATASETS[self.name]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainedTeacher(TrainSettings):
    """A teacher that is trained here first."""

    arch: Arch
    """Model."""
    min_top1: float = 0.0
    """Test accuracy in percent below which nothing is distilled from it."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        TrainSettings.__post_init__(self)
        require_between("min_top1", self.min_top1, 0, 100)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ForeignTeacher:
    """A teacher whose weights come from elsewhere."""

    arch: Arch
    """Model."""
    weights: str
    """File (.safetensors, .pt, .pth): absolute, or relative to the recipe file, or to AFPKD_DATA."""
    min_top1: float = 0.0
    """Test accuracy in percent below which nothing is distilled from it."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_between("min_top1", self.min_top1, 0, 100)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Prompts(TrainSettings):
    """Phase 1: how the frequency prompts are fine-tuned inside the frozen teacher (MasKD's recipe, shortened)."""

    epochs: float = 2000 * 64 / 50_000
    """Default: 2,000 steps of 64 images of CIFAR."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser."""
    lr: float = 0.01
    """Peak learning rate."""
    weight_decay: float = 1e-3
    """L2 penalty."""
    schedule: Literal["multistep", "onecycle", "cosine"] = "cosine"
    """Learning-rate schedule."""
    tokens: int = 2
    """T, prompts a band."""
    scales: int = 3
    """J, at most so many wavelet scales a level (fewer on small maps)."""
    overlap_weight: float = 1.0
    """lambda of the mask-overlap loss."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        TrainSettings.__post_init__(self)
        for key, least, most in (("tokens", 1, 64), ("scales", 1, 8), ("overlap_weight", 0, 1e6)):
            require_between(key, getattr(self, key), least, most)
        if self.tokens == 1 and self.overlap_weight:
            raise ValueError("overlap_weight: a single token overlaps with nothing: set it to 0")
        if self.compile:
            raise ValueError("compile: prompts act inside the teacher and are not compiled: leave it out")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Distill(TrainSettings):
    """Phase 2: the student, how it is trained, and the method with its options."""

    student: Arch
    """Model."""
    method: str
    """Distillation method."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        TrainSettings.__post_init__(self)
        if self.method not in OPTIONS:
            raise ValueError(f"method: unknown method '{self.method}'{_nearest(self.method, list(OPTIONS))}")
        options = self.options()
        for key, value in options.items():
            require_between(key, value, 1e-3 if key == "temperature" else 0, 1 if key == "warm_up" else 1e6)
        weights = [value for key, value in options.items() if key in LOSS_WEIGHTS]
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Export:
    """Which files travel."""

    precisions: tuple[Literal["fp32"], ...] = ("fp32",)
    """Precisions to write."""
    opset: int = 18
    """ONNX operator set. 18: at 19 and above an Arm ONNX Runtime fault breaks fp16 AveragePool."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise ValueError(f"precisions: each at most once and at least one, got {self.precisions}")
        if not 18 <= self.opset <= 23:
            raise ValueError(f"opset: 18 to 23 can be exported, got {self.opset}")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Profile:
    """How latency is measured."""

    preset: Literal["quick", "standard", "mlperf"] = "standard"
    """quick: 5 s and 200 samples (no p99); standard: 30 s and 2,010; mlperf: 600 s and 24,576."""
    threads: int = 0
    """CPU threads of the runtime; 0 = the runtime's default."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.threads < 0:
            raise ValueError(f"threads: must be 0 (the runtime's default) or more, got {self.threads}")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Expected:
    """A published number."""

    top1: float
    """Percent."""
    source: str
    """Who says so."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Recipe:
    """Everything that identifies a run."""

    data: Data
    teacher: TrainedTeacher | ForeignTeacher
    distill: Distill
    prompts: Prompts = field(default_factory=Prompts)
    export: Export = field(default_factory=Export)
    profile: Profile = field(default_factory=Profile)
    seed: int = 0
    description: str = ""
    expected: dict[str, Expected] = field(default_factory=dict)
    """Published numbers to stand beside ours in the report: `[expected.NAME] top1, source`."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        require_between("seed", self.seed, 0, 2**32 - 1)
        num_train = self.data.spec.num_train - self.data.heldout
        for section in ("teacher", "prompts", "distill"):
            batch_size = getattr(getattr(self, section), "batch_size", 0)
            if batch_size > num_train:
                raise ValueError(f"{section}.batch_size: {batch_size} is more than the {num_train} images trained on")

    def stage_digest(self, stage: str) -> str:
        """Identity of one stage: its version and its own part of the recipe, nothing else."""
        parts: Json = {
            "teacher": [self._data(), _without(self.teacher, "weights", "min_top1"), self.seed],
            "prompts": [self._data(), dataclasses.asdict(self.prompts), self.seed],
            "student": [self._data(), dataclasses.asdict(self.distill), self.seed],
            "undistilled": [self._data(), self.distill.training(), self.seed],
            "export": [dataclasses.asdict(self.export), self.data.mean, self.data.std],
            "profile": dataclasses.asdict(self.profile),
            "report": [self.description, {name: dataclasses.asdict(found) for name, found in self.expected.items()}],
        }
        return digest([stage, STAGE_VERSIONS[stage], parts[stage]])

    def _data(self) -> Json:
        return dataclasses.asdict(self.data)


def load_recipe(name: str) -> tuple[str, Recipe]:
    """Read a recipe by name or path and return (its name, the recipe). Raises UserError with one line."""
    path = recipe_path(name)
    raw = _merged(path, ())
    return path.stem, _decoded(raw, path)


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe's name, or of a path to a TOML file."""
    if name.endswith(".toml"):
        path = Path(name).resolve()
        if path.stem in recipe_names() and path.parent != RECIPES:
            raise UserError(f"{path}: a shipped recipe has this name, and runs are named after theirs: rename the file")
        return path
    if name not in recipe_names():
        raise UserError(f"unknown recipe '{name}'{_nearest(name, recipe_names())}; a path must end in .toml")
    return RECIPES / f"{name}.toml"


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def teacher_weights(recipe: Recipe, recipe_file: Path) -> Path | None:
    """Where the foreign teacher's file lies; None for a teacher that is trained here. UserError where it is missing."""
    if not isinstance(recipe.teacher, ForeignTeacher):
        return None
    weights = Path(recipe.teacher.weights).expanduser()
    places = [recipe_file.parent / weights, data_root() / weights]  # an absolute path stays itself
    for place in places:
        if place.is_file():
            return place.resolve()
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise UserError(f"{recipe_file.name}: teacher.weights: no file at {looked}: put the file there or set AFPKD_DATA")


def _decoded(raw: Json, path: Path) -> Recipe:
    try:
        text = json.dumps(raw, allow_nan=False)
    except (TypeError, ValueError):
        raise UserError(f"{path.name}: dates, inf and nan are no values of a recipe") from None
    try:
        return pydantic.TypeAdapter(_recipe_type(raw)).validate_json(text)
    except pydantic.ValidationError as error:
        raise UserError(f"{path.name}: {_first_problem(error, raw)}") from None


def _recipe_type(raw: Json) -> type[Recipe]:
    """The Recipe whose `teacher` and `distill` have just the keys that this recipe's choices give them."""
    foreign = isinstance(raw.get("teacher"), dict) and "weights" in raw["teacher"]
    types = {"teacher": ForeignTeacher if foreign else TrainedTeacher, "distill": _distill_type(raw)}
    return _combined("Recipe", (Recipe,), types)


def _distill_type(raw: Json) -> type[Distill]:
    section = raw.get("distill")
    method = section.get("method") if isinstance(section, dict) else None
    if not isinstance(method, str) or method not in OPTIONS:
        return Distill  # which says what is wrong with it
    return _combined("Distill", (Distill, OPTIONS[method]), {})


def _combined(name: str, bases: tuple[type, ...], annotations: dict[str, Any]) -> type[Any]:
    made = type(name, bases, {"__annotations__": annotations, "__module__": __name__})
    return dataclass(frozen=True, kw_only=True, config=_STRICT)(made)


def _merged(path: Path, seen: tuple[Path, ...]) -> Json:
    """Read a TOML file and lay it over what it `extends`."""
    if path in seen:
        raise UserError(f"{path.name}: extends: goes in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name}: not a TOML file: {error}") from None
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise UserError(f"{path.name}: extends: a recipe's name or path was expected, got {parent!r}")
    base = path.parent / parent if parent.endswith(".toml") else recipe_path(parent)
    return _laid_over(_merged(base.resolve(), (*seen, path)), raw)


def _laid_over(base: Json, top: Json) -> Json:
    merged = {key: value for key, value in base.items() if key not in top}
    for key, value in top.items():
        under = base.get(key)
        both = isinstance(under, dict) and isinstance(value, dict)
        merged[key] = {**_still_valid(key, under or {}, value), **value} if both else value
    return merged


def _still_valid(section: str, base: Json, top: Json) -> Json:
    """The inherited keys of a section, less those of a variant that `top` leaves: another method, another teacher."""
    if section == "distill" and top.get("method", base.get("method")) != base.get("method"):
        left, kept = (OPTIONS.get(str(part.get("method"))) for part in (base, top))
        return {key: value for key, value in base.items() if not hasattr(left, key) or hasattr(kept, key)}
    if section == "teacher":
        training = {f.name for f in dataclasses.fields(TrainSettings)}
        if "weights" in top:
            return {key: value for key, value in base.items() if key not in training}
        if training & top.keys():
            return {key: value for key, value in base.items() if key != "weights"}
    return base


def _first_problem(error: pydantic.ValidationError, raw: Json) -> str:
    problems = error.errors(include_url=False)
    # An unknown key explains a missing one better than the other way round.
    problem = next((p for p in problems if p["type"] == "unexpected_keyword_argument"), problems[0])
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key{_nearest(where[-1], _keys_of(where[:-1], raw))}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}.{message}" if key and ":" in message.split(" ")[0] else f"{key}: {message}"
    return f"{key}: {message[0].lower()}{message[1:]}, got {json.dumps(problem['input'])}"


def _keys_of(section: list[str], raw: Json) -> list[str]:
    """The valid keys of a section, for 'did you mean'."""
    kind: Any = Recipe
    if section == ["distill"]:
        kind = _distill_type(raw)
    elif section == ["teacher"]:
        kind = ForeignTeacher if "weights" in raw["teacher"] else TrainedTeacher
    elif section:
        kind = {"data": Data, "prompts": Prompts, "export": Export, "profile": Profile}.get(section[0], Recipe)
    return [f.name for f in dataclasses.fields(kind)]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean '{close[0]}'?" if close else f": known are {', '.join(known)}"


def _without(section: Any, *keys: str) -> Json:
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in keys}
