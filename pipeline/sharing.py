"""The same stage of the same inputs is made once a graph, and copied to the other recipes that want it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afpkd.errors import UserError
from afpkd.record import Json, atomic_path, digest, write_record
from pipeline.lineage import STAGES, UNFINISHED, WEIGHTS, require_recorded
from pipeline.live import forget_progress
from pipeline.recorded import recorded

if TYPE_CHECKING:
    from pipeline.plan import Named
    from pipeline.recipe import Recipe


def shared_stages(found: Sequence[Named], runs: Path) -> dict[str, dict[str, str]]:
    """Stage -> recipe -> the recipe whose result it takes, where both would make the same of the same.

    What is there already stays its run's own: only a stage that would have to run takes another's result. What one of
    them has begun is made there, and goes on.
    """
    shared: dict[str, dict[str, str]] = {}
    content: dict[tuple[str, str], str] = {}  # recipe, stage -> its weights: their hash, or who will make them
    for stage in STAGES:  # in the order in which they need each other
        makers: dict[str, str] = {}
        for one in sorted(found, key=lambda one: _still_to_do(runs, one.name, stage)):
            fed = [content[one.name, feed] for feed in feeds_of(stage, one.recipe)]
            foreign = one.weights if stage == "teacher" else None
            maker = makers.setdefault(digest([one.recipe.stage_digest(stage), foreign, fed]), one.name)
            if _is_done(runs, one.name, stage):
                content[one.name, stage] = _recorded(runs / one.name / stage)
            elif maker == one.name:
                content[one.name, stage] = f"{maker}/{stage}"
            else:
                content[one.name, stage] = content[maker, stage]
                shared.setdefault(stage, {})[one.name] = maker
    return shared


def share_stage(stage: str, recipe: Recipe, folder: Path, maker: Path, foreign: str | None = None) -> Json:
    """Copy a finished stage of the run `maker` into the run `folder`, record last; UserError where it is not the same.

    foreign: of a teacher taken from a file, that file's hash, which the digest leaves out. The record keeps what it
    says of the making, and says in `shared_from` whose it was.
    """
    source, target = maker / stage, folder / stage
    require_recorded(source, WEIGHTS)
    record = recorded(source / "record.json", "config_digest", "inputs")
    if record["config_digest"] != recipe.stage_digest(stage):
        raise UserError(
            "E_RUN_CHANGED", f"{source}: made by other settings than those of {folder.name}: run its own stage"
        )
    if foreign and record["inputs"].get("weights") != foreign:
        raise UserError(
            "E_RUN_CHANGED", f"{source}: taken from another weights file than that of {folder.name}: run its own stage"
        )
    for feed in feeds_of(stage, recipe):
        made_from = record["inputs"].get(feed)  # no prompts where the masks are untrained
        if made_from and made_from != require_recorded(folder / feed, WEIGHTS):
            raise UserError(
                "E_RUN_CHANGED", f"{source}: made from another {feed} than that of {folder.name}: run its own stage"
            )
    if target.exists() and source.samefile(target):  # what goes there first would be all there is
        raise UserError("E_USAGE", f"{source}: is that stage itself: name another run with --from")
    (target / "record.json").unlink(missing_ok=True)  # an old record must not vouch for new weights
    for path in target.glob("*"):
        if _travels(path):
            path.unlink()  # of a longer run there may be more of them
    (target / UNFINISHED).unlink(missing_ok=True)  # of a training that was cut short here
    forget_progress(target)
    for path in sorted(source.iterdir()):
        if _travels(path):
            with atomic_path(target / path.name) as copy:
                shutil.copyfile(path, copy)
    shared: Json = {**record, "recipe": folder.name, "shared_from": maker.name}
    write_record(target / "record.json", shared)
    return shared


def _travels(path: Path) -> bool:
    return path.suffix in (".safetensors", ".jsonl", ".png") and not path.name.startswith(".")


def feeds_of(stage: str, recipe: Recipe) -> list[str]:
    """Whose weights a stage reads."""
    prompted = ["prompts"] if recipe.distill.uses_prompts else []
    return {"prompts": ["teacher"], "student": ["teacher", *prompted]}.get(stage, [])


def _still_to_do(runs: Path, name: str, stage: str) -> int:
    """0: nothing; 1: what is left of a training that was stopped; 2: all of it."""
    return 0 if _is_done(runs, name, stage) else 1 if (runs / name / stage / UNFINISHED).is_file() else 2


def _is_done(runs: Path, name: str, stage: str) -> bool:
    return all((runs / name / stage / file).is_file() for file in ("record.json", WEIGHTS))


def _recorded(folder: Path) -> str:
    return str(recorded(folder / "record.json", "outputs")["outputs"].get(WEIGHTS))
