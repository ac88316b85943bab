"""The doctor on what lies where: the default recipe, data sets, devices, runs that were left unfinished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from afpkd.errors import UserError
from pipeline.doctor import Finding, bad, ok, warn
from pipeline.holder import HOLDER, is_held, is_locked, read_object
from pipeline.lineage import UNFINISHED


def default_recipe() -> Iterator[Finding]:
    """Can the recipe of the main job be read, and its images?"""
    from afpkd.data import DATASETS
    from afpkd.data.dataset import data_root
    from pipeline.recipe_reader import load_recipe

    recipe = load_recipe("default")[1]
    data = DATASETS[recipe.data.name].load(data_root())
    yield ok("recipe", f"default: {len(data.train.labels):,} training and {len(data.test.labels):,} test images")


def data_sets() -> Iterator[Finding]:
    """Where each data set is looked for, and whether it is there; then what else shipped recipes want."""
    from afpkd.data import DATASETS
    from afpkd.data.dataset import data_root

    for name, spec in DATASETS.items():
        place = data_root() / spec.place
        if place.exists():
            yield ok("data", f"{name}: {place}")
        else:
            yield warn("data", f"{name}: not at {place}", spec.how_to_get)
    yield from _files_of_recipes()


def devices(probe: bool) -> Iterator[Finding]:
    """The devices of devices.toml; reached only when asked."""
    from deploy import devices as inventory
    from deploy.inventory import inventory_path

    try:
        boards = {name: device for name, device in inventory.devices().items() if device.address}
    except UserError as error:
        yield warn("devices", str(error), "mend that line, or move the file away")
        return
    if not boards:
        yield ok("devices", f"local, local-gpu; no boards ({inventory_path()} lists none)")
    elif not probe:
        reached = ", ".join(f"{name} ({device.address.shown})" for name, device in boards.items() if device.address)
        yield ok("devices", f"{reached}; not contacted: afpkd doctor --probe does")
    else:
        yield from _probed(list(boards))


def unfinished(runs: Path) -> Iterator[Finding]:
    """Who holds the folder of runs, and trainings that were cut short."""
    if not runs.is_dir():
        yield ok("runs", f"{runs}: none yet")
        return
    holder = read_object(runs / HOLDER)
    if is_held(runs, holder):
        words = f"{runs} is in use by pid {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
        words = words if holder else f"{runs} is in use by another run"
        words += "" if is_locked(runs) else f" (so says {HOLDER}: there is no lock to ask)"
        yield bad("runs", words, f"wait for it (afpkd watch {runs}/<recipe>), or name another folder with RUNS")
        return
    if holder:
        here = holder.get("host") == os.uname().nodename
        words = "" if here else f", if this file system tells of locks on {holder.get('host')}"
        yield ok("runs", f"a killed run left {runs / HOLDER}: it locks nothing{words}")
    cut = sorted(runs.glob(f"*/*/{UNFINISHED}"))
    for checkpoint in cut:
        recipe, stage = checkpoint.parts[-3:-1]
        mend = f"make distill RECIPE={recipe} (or its TOML file) continues it; to train anew delete {checkpoint}"
        yield warn("runs", f"{recipe}: training of {stage} was cut short", mend)
    if not cut:
        yield ok("runs", f"{runs}: nobody works there, nothing is cut short")


def _files_of_recipes() -> Iterator[Finding]:
    """Files that a shipped recipe names and that are not there: scenes, teachers."""
    from pipeline.recipe_detection import CocoData
    from pipeline.recipe_reader import found_path, load_recipe, recipe_names, recipe_path, teacher_weights

    for name in recipe_names():
        file = recipe_path(name)
        try:
            recipe = load_recipe(name)[1]
            teacher_weights(recipe, file)
            if isinstance(recipe.data, CocoData):
                found_path(recipe.data.train.annotations, file, "data.train.annotations: no file")
        except UserError as error:
            yield warn("data", str(error), f"only RECIPE={name} needs it: see docs/recipes.md")


def _probed(names: list[str]) -> Iterator[Finding]:
    from deploy.fleet import call_each

    for row in call_each(names, "probe", lambda device: {}):
        if "error" in row:
            yield warn("devices", row["error"], f"docs/jetson.md; then afpkd devices probe {row['device']}")
        elif not row["runtimes"]:
            yield warn("devices", f"{row['device']}: reached, but nothing there can run a network", row["advice"][-1])
        else:
            yield ok("devices", f"{row['device']}: reached, runs {', '.join(row['runtimes'])}")
