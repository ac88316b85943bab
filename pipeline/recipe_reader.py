"""Reading recipes: TOML, `extends`, and one clear line for whatever is wrong in a file."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass

from afpkd.data.dataset import data_root
from afpkd.distillers.options import OPTIONS, AfpkdOptions
from afpkd.errors import UserError
from afpkd.models.user_file import is_user_file
from afpkd.names import nearest, unknown
from afpkd.record import Json, expanded
from afpkd.settings import TrainSettings
from afpkd.toml_file import read_toml
from pipeline.recipe import Data, Distill, Recipe
from pipeline.recipe_detection import COCO, CocoData, DistillDetector, ExpectedAp, ForeignDetector, TrainedDetector
from pipeline.recipe_folder import FolderData
from pipeline.recipe_networks import ForeignTeacher, TrainedTeacher, is_one
from pipeline.recipe_outputs import STRICT, Export, Profile
from pipeline.recipe_prompts import Prompts

RECIPES = Path(__file__).parent / "recipes"


def load_recipe(name: str) -> tuple[str, Recipe]:
    """Read a recipe by name or path and return (its name, the recipe). Raises UserError with one line."""
    path = recipe_path(name)
    raw = _merged(path, ())
    return path.stem, _decoded(raw, path)


def load_variant(path: Path, changes: Json) -> tuple[Json, Recipe]:
    """Read a recipe file with `changes` laid over it, as if a file that extends it held them: (raw, the recipe)."""
    raw = _laid_over(_merged(path, ()), changes)
    return raw, _decoded(raw, path)


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe's name, or of a path to a TOML file."""
    if name.endswith(".toml"):
        path = Path(name).resolve()
        taken = path.stem in recipe_names() and path.parent != RECIPES
        if taken or path.stem.startswith(".") or not path.stem.isprintable() or {*path.stem} & {*"{}"}:
            told = "a shipped recipe has this name" if taken else "a dot in front, braces or unprintable characters"
            raise UserError("E_RECIPE_NAME", f"{path}: {told}, and runs are named after recipes: rename the file")
        return path
    if name not in recipe_names():
        raise UserError("E_RECIPE_NAME", f"{unknown('recipe', name, recipe_names())} (a path must end in .toml)")
    return RECIPES / f"{name}.toml"


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def teacher_weights(recipe: Recipe, recipe_file: Path) -> Path | None:
    """Where the foreign teacher's file lies; None for a teacher that is trained here. UserError where it is missing."""
    if isinstance(recipe.teacher, TrainSettings) or recipe.teacher.weights == "default":
        return None
    return found_path(recipe.teacher.weights, recipe_file, "teacher.weights: no file")


def found_path(name: str, recipe_file: Path, what: str, *, folder: bool = False) -> Path:
    """A path that a recipe names: absolute, or beside the recipe file, or below AFPKD_DATA. UserError: not there."""
    places = _places(name, recipe_file)
    for place in places:
        if place.is_dir() if folder else place.is_file():
            return place.resolve()
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise UserError("E_RECIPE_PATH", f"{recipe_file.name}: {what} at {looked}: put it there or set AFPKD_DATA")


def _places(name: str, recipe_file: Path) -> list[Path]:
    path = expanded(name)
    return [recipe_file.parent / path, data_root() / path]  # an absolute path stays itself


def _located(raw: Json, recipe_file: Path) -> Json:
    """The recipe with the user's own files and folders by their whole paths. UserError: not there."""
    located = {name: dict(section) if isinstance(section, dict) else section for name, section in raw.items()}
    data, teacher, distill = (located.get(name) for name in ("data", "teacher", "distill"))
    if isinstance(data, dict) and data.get("name") == "folder" and isinstance(data.get("path"), str):
        data["path"] = str(found_path(data["path"], recipe_file, "data.path: no folder", folder=True))
    if _detects(located):
        located |= {name: _where_found(located.get(name), recipe_file) for name in ("data", "teacher", "distill")}
        data, teacher, distill = (located.get(name) for name in ("data", "teacher", "distill"))
    for section, key, where in ((teacher, "arch", "teacher.arch"), (distill, "student", "distill.student")):
        if not isinstance(section, dict):
            continue
        arch, weights = section.get(key), section.get("weights")
        if isinstance(arch, str) and is_user_file(arch):
            file, _, function = arch.rpartition(":")
            section[key] = f"{found_path(file, recipe_file, f'{where}: no file')}:{function}"
        starts = isinstance(weights, str) and weights not in ("none", "default")
        if starts and not (section is teacher and _is_adopted(section)):
            section["weights"] = str(
                found_path(str(weights), recipe_file, f"{where.partition('.')[0]}.weights: no file")
            )
    return located


def _where_found(value: Any, recipe_file: Path) -> Any:
    """A detector's section with each scene's and backbone's place whole, where something lies there."""
    if not isinstance(value, dict):
        return value
    whole = {key: _where_found(inner, recipe_file) for key, inner in value.items()}
    for key in whole.keys() & {"annotations", "images", "backbone"}:
        if isinstance(whole[key], str):
            fits = Path.is_dir if key == "images" else Path.is_file
            there = next(filter(fits, _places(whole[key], recipe_file)), None)
            whole[key] = str(there.resolve()) if there else whole[key]
    return whole


def _decoded(raw: Json, path: Path) -> Recipe:
    raw = _located(raw, path)
    try:
        text = json.dumps(raw, allow_nan=False)
    except RecursionError:
        raise UserError("E_RECIPE_VALUE", f"{path.name}: nested too deeply for a recipe") from None
    except (TypeError, ValueError):
        raise UserError("E_RECIPE_VALUE", f"{path.name}: dates, inf and nan are no values of a recipe") from None
    try:
        choices: list[Any] = [_data_type(raw), _teacher_type(raw), _distill_type(raw), _detects(raw)]
        return _adapter(*choices).validate_json(text)
    except pydantic.ValidationError as error:
        raise first_mistake(path.name, error, lambda section: _keys_of(section, raw)) from None


@functools.cache  # recipes of a sweep make the same choices, and a type takes longer than a recipe
def _adapter(data: Any, teacher: Any, distill: Any, detects: bool) -> pydantic.TypeAdapter[Recipe]:
    """Of the Recipe whose `data`, `teacher` and `distill` have just the keys that this recipe's choices give them."""
    types: dict[str, Any] = {"data": data, "teacher": teacher, "distill": distill, "rivals": _rivals()}
    if not detects:
        return pydantic.TypeAdapter(_combined("Recipe", (Recipe,), types))
    types["expected"] = dict[str, ExpectedAp]
    return pydantic.TypeAdapter(_combined("Recipe", (Recipe,), types, expected=dataclasses.field(default_factory=dict)))


@functools.cache
def _rivals() -> type[Any]:
    """A table a method, with its options."""
    kinds = {name: _combined(name, (options,), {}) for name, options in OPTIONS.items()}
    return _combined("Rivals", (), {name: kind | None for name, kind in kinds.items()}, **dict.fromkeys(kinds))


def _detects(raw: Json) -> bool:
    section = raw.get("data")
    return isinstance(section, dict) and section.get("name") == COCO


def _teacher_type(raw: Json) -> type[Any]:
    foreign = isinstance(raw.get("teacher"), dict) and _is_adopted(raw["teacher"])
    if _detects(raw):
        return ForeignDetector if foreign else TrainedDetector
    return ForeignTeacher if foreign else TrainedTeacher


def _data_type(raw: Json) -> type[Data | FolderData | CocoData]:
    if _detects(raw):
        return CocoData
    section = raw.get("data")
    return FolderData if isinstance(section, dict) and section.get("name") == "folder" else Data


def _is_adopted(teacher: Json) -> bool:
    """Whether this teacher has its weights from elsewhere and is not trained (any more) here."""
    return "weights" in teacher and "epochs" not in teacher


def _distill_type(raw: Json) -> type[Distill]:
    section, base = raw.get("distill"), DistillDetector if _detects(raw) else Distill
    method = section.get("method") if isinstance(section, dict) else None
    if not isinstance(method, str) or method not in OPTIONS:
        return base  # which says what is wrong with it
    options: Any = OPTIONS[method]
    return _with_options(base, options)


@functools.cache
def _with_options(base: Any, options: Any) -> type[Distill]:
    made: type[Distill] = _combined("Distill", (base, options), {})
    return made


def _combined(name: str, bases: tuple[type, ...], annotations: dict[str, Any], **defaults: Any) -> type[Any]:
    made = type(name, bases, {"__annotations__": annotations, "__module__": __name__, **defaults})
    return dataclass(frozen=True, kw_only=True, config=STRICT)(made)


def _merged(path: Path, seen: tuple[Path, ...]) -> Json:
    """Read a TOML file and lay it over what it `extends`."""
    if path in seen:
        raise UserError(
            "E_RECIPE_VALUE", f"{path.name}: extends: goes in a circle: {' -> '.join(p.name for p in (*seen, path))}"
        )
    raw = read_toml(path)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise UserError("E_RECIPE_VALUE", f"{path.name}: extends: a recipe's name or path was expected, got {parent!r}")
    try:
        base = path.parent / parent if parent.endswith(".toml") else recipe_path(parent)
    except UserError as error:
        raise UserError("E_RECIPE_NAME", f"{path.name}: extends: {error.message}") from None
    return _laid_over(_merged(base.resolve(), (*seen, path)), raw)


def _laid_over(base: Json, top: Json) -> Json:
    merged = {key: value for key, value in base.items() if key not in top}
    for key, value in top.items():
        under = base.get(key)
        both = isinstance(under, dict) and isinstance(value, dict)
        merged[key] = {**_still_valid(key, under or {}, value), **value} if both else value
    if not all(map(is_one, _pair(base), _pair(merged))):  # published numbers and weights are a pair's own
        return {**merged, **{key: top.get(key, {}) for key in ("expected", "rivals") if key in merged}}
    return {**merged, "distill": _as_rival(base, top, merged)} if isinstance(top.get("distill"), dict) else merged


def _as_rival(base: Json, top: Json, merged: Json) -> Any:
    """[distill] where `top` names another method than `base`, with the options that `base` has for that method."""
    method, rivals = merged["distill"].get("method"), base.get("rivals")
    known_options = rivals.get(method) if isinstance(rivals, dict) and isinstance(method, str) else None
    if "method" not in top["distill"] or not isinstance(known_options, dict):
        return merged["distill"]
    return {**merged["distill"], **known_options, **top["distill"]}


def _pair(raw: Json) -> list[Any]:
    sections = [(raw.get("teacher"), "arch"), (raw.get("distill"), "student"), (raw.get("data"), "name")]
    return [section.get(key) if isinstance(section, dict) else None for section, key in sections]


def _still_valid(section: str, base: Json, top: Json) -> Json:
    """The inherited keys of a section, less those of a variant that `top` leaves: another method or teacher."""
    if section == "data" and "folder" in (base.get("name"), top.get("name")):
        return base if top.get("name", "folder") == base.get("name") else {}
    if top.get("weights", "none") != "none":  # of a whole network, whose backbone comes with it
        base = {key: value for key, value in base.items() if key != "backbone"}
    if section == "distill" and top.get("method", base.get("method")) != base.get("method"):
        left, kept = (OPTIONS.get(str(part.get("method"))) for part in (base, top))
        idle = AfpkdOptions.logit_term if kept is AfpkdOptions and not top.get("kappa") else ()
        fits = {key: hasattr(kept, key) and key not in idle for key in base if hasattr(left, key)}
        return {key: value for key, value in base.items() if fits.get(key, True)}
    if section == "prompts" and top.get("objective") == "task":  # which has no budget
        return {key: value for key, value in base.items() if key not in ("area", "area_weight")}
    if section == "teacher":
        training = {f.name for f in dataclasses.fields(TrainSettings)}
        gone = training if _is_adopted(top) else {"weights"} if training & top.keys() and _is_adopted(base) else set()
        return {key: value for key, value in base.items() if key not in gone}
    return base


def first_mistake(file: str, error: pydantic.ValidationError, keys_of: Callable[[list[str]], list[str]]) -> UserError:
    """The first mistake in a file, in one line; `keys_of` gives the valid keys of a section, for 'did you mean'."""
    problems = error.errors(include_url=False)
    # An unknown key explains a missing one better than the other way round.
    problem = next((p for p in problems if p["type"] == "unexpected_keyword_argument"), problems[0])
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] == "unexpected_keyword_argument":
        return UserError("E_RECIPE_KEY", f"{file}: {key}: unknown key{nearest(where[-1], keys_of(where[:-1]))}")
    if problem["type"] == "missing":
        return UserError("E_RECIPE_KEY", f"{file}: {key}: missing")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        joint = "" if not key else "." if ":" in message.split(" ")[0] else ": "
        told = f"{key}{joint}{message}"
    else:
        told = f"{key}: {message[0].lower()}{message[1:]}, got {json.dumps(problem['input'])}"
    return UserError("E_RECIPE_VALUE", f"{file}: {told}")


def _keys_of(section: list[str], raw: Json) -> list[str]:
    """The valid keys of a section, for 'did you mean'."""
    kind: Any = Recipe
    if section == ["distill"]:
        kind = _distill_type(raw)
    elif section == ["teacher"]:
        kind = _teacher_type(raw)
    elif section == ["data"]:
        kind = _data_type(raw)
    elif section == ["rivals"]:
        return list(OPTIONS)
    elif section[:1] == ["rivals"]:
        kind = OPTIONS[section[1]]
    elif section:
        kind = {"prompts": Prompts, "export": Export, "profile": Profile}.get(section[0], Recipe)
    return [f.name for f in dataclasses.fields(kind)]
