"""What one graph is to make, read once: its recipes, the identity of their stages, and which stages they share.

The plan is the Snakefile's configuration, so that neither Snakemake nor its jobs on a cluster read a recipe again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from afpkd.errors import UserError
from afpkd.record import Json, digest, read_record, sha256_of
from deploy.devices import find_device
from deploy.presets import find_preset
from pipeline.lineage import STAGES
from pipeline.recipe import ROLES, STAGE_VERSIONS, Recipe
from pipeline.recipe_reader import RECIPES, load_recipe, recipe_path, teacher_weights
from pipeline.report import KINDS
from pipeline.sharing import shared_stages

COMPARISON = "comparison"
"""The folder, among the runs, of the report on several recipes."""
_hash = functools.cache(sha256_of)  # recipes of a sweep have the same foreign teacher


class Named(NamedTuple):
    """A recipe of the graph; its run's folder has its name."""

    name: str
    recipe: Recipe
    file: Path
    weights: str | None
    """Hash of a foreign teacher's file."""

    def digests(self) -> dict[str, str]:
        """Identity of each stage."""
        return {stage: self.recipe.stage_digest(stage) for stage in STAGE_VERSIONS}


def read_recipes(recipes: Sequence[str]) -> list[Named]:
    """Read each recipe, once where it is named twice; UserError with one line for what is wrong or missing."""
    found: dict[str, Named] = {}
    for given in recipes:
        name, recipe = load_recipe(given)
        file = recipe_path(given)
        if name == COMPARISON:
            raise UserError(
                "E_RECIPE_NAME", f"{file}: runs/{name} is the folder of reports on several recipes: rename the file"
            )
        weights = teacher_weights(recipe, file)
        one = Named(name, recipe, file, _hash(weights) if weights else None)
        if found.setdefault(name, one).file != file:
            raise UserError(
                "E_RECIPE_NAME",
                f"{file}: {found[name].file} has the same name, and runs are named after theirs: rename one",
            )
    return list(found.values())


def plan_of(found: Sequence[Named], runs: Path, goals: Sequence[str], devices: Sequence[str]) -> Json:
    """The Snakefile's configuration, less what is this machine's alone."""
    digests = {one.name: one.digests() for one in found}
    return {
        "recipes": {
            one.name: {
                "file": str(one.file),
                "digests": digests[one.name],
                "weights": one.weights,
                "prompts": one.recipe.distill.uses_prompts,
                "turns": ["_".join(roles) for roles in roles_in_turns(one.recipe)],
                "profiles": [target for target in targets_of("profile", one, devices) if target.endswith(".json")],
            }
            for one in found
        },
        "shared": shared_stages(found, runs),
        "devices": [{"name": name, "here": find_device(name).machine == "local"} for name in devices],
        "compared": [target for goal in goals for one in found for target in targets_of(goal, one, devices)],
        "roles": list(ROLES),
        "kinds": list(KINDS),
        "comparison": digest([[name, digests[name]["report"]] for name in digests]),
    }


def targets_of(goal: str, one: Named, devices: Sequence[str]) -> list[str]:
    """The files, relative to the folder of runs, that a goal wants."""
    name = one.name
    profiles = [
        f"{name}/profiles/{device}/{role}-{precision}.json"
        for device in devices
        for role in ROLES
        for precision in one.recipe.export.precisions
    ]
    return {
        "distill": [f"{name}/student/record.json", f"{name}/undistilled/record.json"],
        "export": [f"{name}/{role}/bundle/manifest.json" for role in ROLES],
        "profile": [*profiles, f"{name}/report.html"],
        "report": [f"{name}/report.html"],
    }[goal]


def roles_in_turns(recipe: Recipe) -> list[tuple[str, ...]]:
    """Which roles one job measures: all of them in turns where each takes several processes, else each alone."""
    return [ROLES] if find_preset(recipe.profile.preset).repeats > 1 else [(role,) for role in ROLES]


def outdated_records(runs: Path, one: Named) -> list[Path]:
    """Records whose identity is not this recipe's, also where a verb made them and Snakemake knows nothing.

    UserError where they are of another recipe of the same name, whose file is still there: they would be lost.
    """
    folder = runs / one.name
    stages = {f"{stage}/record.json": stage for stage in STAGES}
    stages |= {f"{role}/bundle/manifest.json": "export" for role in ROLES}
    stages |= {str(path.relative_to(folder)): "profile" for path in folder.glob("profiles/*/[!.]*.json")}
    outdated = []
    for name, stage in stages.items():
        path = folder / name
        if not path.exists():
            continue
        record = read_record(path)
        made_by = record.get("lineage", record)
        if not isinstance(made_by, dict) or made_by.get("config_digest") != one.recipe.stage_digest(stage):
            outdated.append(path)
    other = _owner(folder, one)
    if outdated and other is not None:
        told = f"the records in {folder} are of {other}, which has the same name, and would be lost"
        raise UserError("E_RECIPE_NAME", f"{one.file}: {told}: rename one of them, or take another folder (RUNS=...)")
    return outdated


def _owner(folder: Path, one: Named) -> Path | None:
    """The recipe's file that a run's folder belongs to, where it is another than this one and still there.

    A note in the folder says it, relative to the folder of runs: a project that is moved or copied stays its own. No
    recipe but the shipped one has a shipped one's name, wherever this program lies.
    """
    if one.file.parent == RECIPES:
        return None
    note, runs = folder / ".recipe", folder.resolve().parent
    if note.is_file():
        file = Path(os.path.normpath(runs / os.fsdecode(note.read_bytes())))
        if file.is_file():
            return None if file == one.file else file
    if folder.is_dir():
        note.write_bytes(os.fsencode(os.path.relpath(one.file, runs)))
    return None
