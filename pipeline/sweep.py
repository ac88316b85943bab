"""A sweep: one recipe, some keys with several values each, some seeds: every combination is a recipe of its own.

A point is a small TOML file with `extends`, kept in its run's folder: it can be run again by hand, alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from afpkd.errors import UserError
from afpkd.record import Json, digest, write_text
from afpkd.toml_file import read_toml
from pipeline.recipe import ROLES
from pipeline.recipe_reader import RECIPES, load_variant, recipe_names, recipe_path
from pipeline.summary import metric_of

_FILE_KEYS = ("path", "weights", "backbone", "annotations", "images", "arch", "student")
"""Keys that may name a file beside the recipe."""
_LONGEST = 24  # characters of a value in a run's name
_LONGEST_NAME = 200
_MOST_POINTS = 1000


class Point(NamedTuple):
    """One combination."""

    name: str
    """Of its recipe, and of its run's folder."""
    settings: dict[str, Any]
    """The swept keys, dotted, and their values."""
    seed: int
    base: Path
    """The recipe that is swept."""
    changes: dict[str, Any]
    """What the point's recipe says beside it, dotted."""

    def file(self, runs: Path) -> Path:
        """Where its recipe is kept."""
        return runs / self.name / f"{self.name}.toml"

    def text(self, runs: Path) -> str:
        """Its recipe, which names its base from where it is kept: a project may be moved with its runs."""
        beside = os.path.relpath(self.base, self.file(runs).parent.resolve())
        extends = self.base.stem if self.base.parent == RECIPES else beside
        values = {"extends": extends, **self.changes}
        return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def points_of(recipe: str, settings: Sequence[str], seeds: int) -> list[Point]:
    """Every combination of the settings `KEY=VALUE,VALUE` with the recipe's seed and those after it, `seeds` in all.

    All are read as recipes first: UserError with one line that names the key, as for a recipe file.
    """
    swept = _settings(settings)
    file = recipe_path(recipe)
    first = load_variant(file, {})[1].seed
    if seeds < 1:
        raise UserError("E_USAGE", f"--seeds: at least 1, got {seeds}")
    if not swept and seeds == 1 and recipe in recipe_names():  # its one point would bear the name of a shipped recipe
        raise UserError("E_USAGE", "nothing to sweep: give --set KEY=VALUE,VALUE or --seeds N, or call make distill")
    if "seed" in swept and seeds > 1:
        raise UserError("E_USAGE", "--set seed=... and --seeds: give one of them")
    num = math.prod(map(len, swept.values())) * seeds
    if num > _MOST_POINTS:
        raise UserError("E_USAGE", f"{num:,} points, each of them a training: {_MOST_POINTS:,} at most: sweep less")
    short = {key: key.rpartition(".")[2] for key in swept}
    if len(set(short.values())) < len(short):
        short = {key: key for key in swept}
    points, known = list[Point](), dict[str, str]()
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        words = [f"{short[key]}={_in_a_name(value)}" for key, value in chosen.items()]
        for seed in range(first, first + seeds):
            named = words + ([f"seed={seed}"] if seeds > 1 else [])
            changes = chosen if "seed" in chosen else {**chosen, "seed": seed}
            raw, decoded = load_variant(file, _nested(changes))
            name = ".".join([file.stem, *named])
            same = known.setdefault(digest(dataclasses.asdict(decoded)), name)
            if same != name:
                raise UserError("E_USAGE", f"{name} and {same} are one recipe: leave one of the two values out")
            if len(name) > _LONGEST_NAME:
                raise UserError("E_USAGE", f"{name}: too long a name for a run's folder: sweep fewer keys at once")
            points.append(Point(name, chosen, decoded.seed, file, {**changes, **_anchored(raw, file.parent)}))
    return points


def write_points(points: Sequence[Point], runs: Path) -> list[str]:
    """Write each point's recipe into its run's folder; give the files' names.

    UserError where a sweep of another recipe of the same name has left its points there.
    """
    for point in points:
        _require_own(point, point.file(runs))
    for point in points:
        write_text(point.file(runs), point.text(runs))
    return [str(point.file(runs)) for point in points]


def _require_own(point: Point, file: Path) -> None:
    if not file.is_file():
        return
    swept = str(read_toml(file).get("extends"))
    before = (file.parent / swept).resolve()
    if swept.endswith(".toml") and before != point.base and before.is_file():
        told = f"of a sweep of {before}, not of {point.base}: rename one of them, or take another folder (RUNS=...)"
        raise UserError("E_RECIPE_NAME", f"{file}: {told}")


def rows_of(points: Sequence[Point], found: Sequence[Json]) -> list[Json]:
    """One row per combination of settings: its seeds, and of each role mean, std (null of one seed) and n of its score.

    `heldout`: on the training images set aside, to choose by; `roles`: of the selected epoch on test.
    """
    grouped: dict[str, list[tuple[Point, Json]]] = {}
    for point, facts in zip(points, found, strict=True):
        grouped.setdefault(digest(point.settings), []).append((point, facts))
    rows = []
    for group in grouped.values():
        runs = [facts["roles"] for _, facts in group]
        scores = {"roles": _by_role(runs, "test_{}_selected"), "heldout": _by_role(runs, "heldout_{}")}
        rows.append({"settings": group[0][0].settings, "seeds": [point.seed for point, _ in group], **scores})
    return rows


def table_of(rows: Sequence[Json]) -> list[str]:
    """The rows for people: held-out scores, then those on test; no column where no row has a score."""
    splits = {"heldout": "held-out", "roles": "test"}
    columns = [(split, role) for split in splits for role in ROLES if any(role in row[split] for row in rows)]
    grid = [
        ["", "", *(splits[split] for split, _ in columns)],
        ["", "seeds", *(role for _, role in columns)],
        *(
            [label(row["settings"]), str(len(row["seeds"])), *(_cell(row[split].get(role)) for split, role in columns)]
            for row in rows
        ),
    ]
    first, *others = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        f"{line[0]:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], others, strict=True))
        for line in grid
    ]


def label(settings: Mapping[str, Any]) -> str:
    """The settings of a point, for people."""
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()) or "as it is"


def _by_role(runs: Sequence[Json], form: str) -> Json:
    """Role -> its score over the runs' seeds, of those that have one: a foreign teacher has none on held-out images."""
    found: dict[str, list[float]] = {}
    for roles in runs:
        key = form.format(metric_of(roles))
        for role in ROLES:
            if role in roles and roles[role]["metrics"].get(key) is not None:
                found.setdefault(role, []).append(float(roles[role]["metrics"][key]))
    return {role: _summary(scores) for role, scores in found.items()}


def _summary(scores: Sequence[float]) -> Json:
    std = statistics.stdev(scores) if len(scores) > 1 else None
    return {"mean": statistics.mean(scores), "std": std, "n": len(scores)}


def _cell(score: Json | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.2f}" + (f" ± {score['std']:.2f}" if score["std"] is not None else "")


def _settings(given: Sequence[str]) -> dict[str, list[Any]]:
    """KEY=VALUE,VALUE -> key, values: those of TOML, words without quotes as text."""
    swept: dict[str, list[Any]] = {}
    for setting in given:
        key, equals, text = setting.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
            raise UserError("E_USAGE", f"--set {setting}: KEY=VALUE,VALUE was expected, such as distill.mu=1,2,5")
        if key in swept:
            raise UserError("E_USAGE", f"--set {key}: given twice: name all its values at once")
        values = _values(setting, text)
        if not values or any(isinstance(value, dict) for value in values):
            raise UserError("E_USAGE", f"--set {setting}: one value at least, none of them a table")
        try:
            different = len({digest(value) for value in values})
        except ValueError:
            raise UserError("E_USAGE", f"--set {setting}: inf and nan are no values of a recipe") from None
        if different < len(values):
            raise UserError("E_USAGE", f"--set {setting}: a value is there twice")
        swept[key] = values
    return swept


def _values(setting: str, text: str) -> list[Any]:
    """What stands between commas that are in no quotes and no brackets: a value of TOML each, or words."""
    values, begun = list[Any](), ""
    for part in text.split(","):
        begun = f"{begun},{part}" if begun else part
        word = begun.strip()
        found = _of_toml(word)
        if found is None and word.startswith(("'", '"', "[", "{")):
            continue  # its end is behind this comma
        values += [word if found is None else found] if word else []
        begun = ""
    if begun:
        raise UserError(
            "E_USAGE", f"--set {setting}: {begun.strip()} is no value of TOML: is a quote or a bracket missing?"
        )
    return values


def _of_toml(word: str) -> Any:
    """A value as TOML has it; None for words without quotes, and for dates, which are no recipe's values."""
    try:
        found = tomllib.loads(f"found = {word}")
        json.dumps(found)
    except (tomllib.TOMLDecodeError, TypeError, RecursionError):
        return None
    return found["found"] if len(found) == 1 else None  # a line end begins another key


def _in_a_name(value: Any) -> str:
    """A value as a part of a file's name: itself where it can be, else what is left of it and a hash."""
    text = value if isinstance(value, str) else json.dumps(value)
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", text)[:_LONGEST]
    return plain if plain == text else f"{plain}-{digest(value)[:6]}"


def _nested(settings: Mapping[str, Any]) -> Json:
    """Dotted keys as tables."""
    nested: Json = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        table = nested
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise UserError("E_USAGE", f"--set {key}: {section} has a value of its own")
        if isinstance(table.get(last), dict):
            raise UserError("E_USAGE", f"--set {key}: keys below it are set as well")
        table[last] = value
    return nested


def _anchored(raw: Json, folder: Path, prefix: str = "") -> Json:
    """The keys that name a file beside the recipe, dotted, as whole paths: a point's recipe lies elsewhere."""
    found: Json = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            found |= _anchored(value, folder, f"{prefix}{key}.")
        elif key in _FILE_KEYS and prefix and isinstance(value, str):
            file, colon, function = value.rpartition(":") if key in ("arch", "student") else (value, "", "")
            if file not in ("", "none", "default") and (folder / file).exists():
                found[f"{prefix}{key}"] = f"{(folder / file).absolute()}{colon}{function}"
                if key == "weights" and "epochs" in raw:  # alone, they would be a teacher that is not trained
                    found[f"{prefix}epochs"] = raw["epochs"]
    return found
