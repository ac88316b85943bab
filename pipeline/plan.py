"""What one graph is to make, read once: its recipes, the identity of their stages, and which stages they share.

The plan is the Snakefile's configuration, so that neither Snakemake nor its jobs on a cluster read a recipe again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Sequence
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
_NOTE = ".recipe"
"""In a run's folder: the recipe's file that its records are of."""
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


def other_comparison(runs: Path, found: Sequence[Named]) -> list[Path]:
    """The page that compares recipes, where it is of others than these: a report by hand lies in the same place."""
    folder, names = runs / COMPARISON, [one.name for one in found]
    page, told = folder / "report.html", folder / "report.json"
    if len(names) < 2 or not (page.is_file() and told.is_file()):
        return []
    return [] if read_record(told).get("recipes") == names else [page]


def outdated_records(runs: Path, one: Named, measured: Collection[str] = ()) -> list[Path]:
    """Records whose identity is not this recipe's, also where a verb made them and Snakemake knows nothing.

    measured: the devices that are measured now; what was measured on others stays, since nobody measures it again.
    UserError where they are of another recipe of the same name, whose file is still there: they would be lost.
    """
    outdated = []
    for path, stage in _records(runs / one.name).items():
        record = read_record(path)
        made_by = record.get("lineage", record)
        same = isinstance(made_by, dict) and made_by.get("config_digest") == one.recipe.stage_digest(stage)
        if stage == "teacher" and one.weights:  # taken from a file, whose content is an input and no part of the digest
            inputs = record.get("inputs")
            same = same and isinstance(inputs, dict) and inputs.get("weights") == one.weights
        if stage == "profile":
            device = path.parent.name
            if device not in measured:
                continue
            same = same and record.get("device_digest", "") == find_device(device).digest
        if not same:
            outdated.append(path)
    other = _other_owner(runs / one.name, one)
    if outdated and other is not None:
        told = f"the records in {runs / one.name} are of {other}, which has the same name, and would be lost"
        raise UserError("E_RECIPE_NAME", f"{one.file}: {told}: rename one of them, or take another folder (RUNS=...)")
    return outdated


def claim_folder(runs: Path, one: Named) -> None:
    """Note in the run's folder whose it is, unless it holds records of another recipe, whose file is still there.

    Relative to the folder of runs: a project that is moved or copied stays its own. No recipe but the shipped one has a
    shipped one's name, wherever this program lies.
    """
    folder = runs / one.name
    if one.file.parent != RECIPES and (_other_owner(folder, one) is None or not _records(folder)):
        (folder / _NOTE).write_bytes(os.fsencode(os.path.relpath(one.file, folder.resolve().parent)))


def _other_owner(folder: Path, one: Named) -> Path | None:
    """The recipe's file that a run's folder belongs to, where it is another than this one and still there."""
    note = folder / _NOTE
    if one.file.parent == RECIPES or not note.is_file():
        return None
    file = Path(os.path.normpath(folder.resolve().parent / os.fsdecode(note.read_bytes())))
    return file if file.is_file() and file != one.file else None


def _records(folder: Path) -> dict[Path, str]:
    """The records of a run that are there, and the stage that makes each."""
    stages = {folder / stage / "record.json": stage for stage in STAGES}
    stages |= {folder / role / "bundle" / "manifest.json": "export" for role in ROLES}
    stages |= dict.fromkeys(folder.glob("profiles/*/[!.]*.json"), "profile")
    return {path: stage for path, stage in stages.items() if path.exists()}
