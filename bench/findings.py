"""Does phase 1 as FreeKD writes it mark anything? The gradient of its loss and what it settles on, against ours.

`make bench ARGS=findings` writes results/findings.json: the CIFAR-100 ResNet-56 of the CPU protocol, seed 0; some ten
CPU-minutes, most of them the prompts' two trainings. `as written` is the accuracy bench's control of this name:
averaged tokens without a gate, cross-entropy, overlap penalty.

gradient: of the loss that moves the prompts, at their start, on images that the teacher was trained on (as they are,
    and augmented) and on test images, which choose nothing here: its norm, and the low bands' share of its square.
    Without the penalties of overlap and area, which want other masks whatever the teacher says.
settled: after training, a row a level and band: cosine of the band's first two prompts, mean and relative spread of its
    mask; std of omega over the channels; how far the teacher's answers are from its own (nats) with these masks and
    with each of their controls; why they are refused, or null.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from afpkd.acceptance import why_not_accepted
from afpkd.data.batches import Augmentation, evenly_spaced, generator_for
from afpkd.learners import FrozenTeacher, prompt_learner
from afpkd.models.outputs import Shapes
from afpkd.prompts import BandPrompts, FrequencyPrompts
from afpkd.record import Json, read_record, write_record
from bench.accuracy import run_of
from bench.rows import RESULTS, circumstances
from bench.variants import MAIN, VARIANTS
from pipeline.splits import augmentation_of
from pipeline.workspace import Workspace

FORMS = {"as written": "as written", "ours": "afpkd"}
"""The two forms, and the variants of the accuracy bench that have them."""

NUM_IMAGES = 512


def main(folder: Path = Path("runs/bench-findings"), results: Path = RESULTS, recipe: str = MAIN.recipe) -> None:
    """Train the prompts of both forms, write findings.json, print it without its rows."""
    found: Json = {name: of_form(variant, folder, recipe) for name, variant in FORMS.items()}
    write_record(results / "findings.json", {**found, "images": NUM_IMAGES, **circumstances()})
    for name, form in found.items():
        said = {**form["gradient"], **{key: form["settled"][key] for key in ("refused", "own", "shuffled")}}
        sys.stdout.write(f"{name}: {json.dumps(said, indent=1)}\n")


def of_form(variant: str, folder: Path, recipe: str) -> Json:
    """Gradients at the start, and where the training ends."""
    run = run_of(variant, VARIANTS[variant], 0, folder, recipe)
    work = Workspace(run, "prompts")
    teacher, shapes = work.teacher()
    judged = read_record(run.role("prompts") / "record.json")["metrics"]
    cosines = token_cosines(work.prompts(teacher, shapes))
    bands = [{**row, "cosine": cosine} for row, cosine in zip(judged["masks"], cosines, strict=True)]
    kept = {key: judged[key] for key in ("own", "banded", "shuffled", "constant", "omega_std")}
    settled = {"bands": bands, "refused": why_not_accepted(judged), **kept}
    return {"gradient": gradients(work, teacher, shapes), "settled": settled}


def gradients(work: Workspace, teacher: FrozenTeacher, shapes: Shapes) -> Json:
    """Of the recipe's objective on new prompts, by kind of images."""
    torch.manual_seed(work.run.recipe.seed)
    prompts = work.new_prompts(teacher, shapes)
    objective = work.run.recipe.prompts.objective
    learner = prompt_learner(
        prompts, teacher, work.heldout, objective=objective, overlap_weight=0.0, area=1.0, area_weight=0.0
    )
    as_they_are = Augmentation(padding=0, flip=False)
    kinds = {
        "training images": (work.train, as_they_are),
        "training images, augmented": (work.train, augmentation_of(work.run.recipe.data)),
        "test images": (work.test, as_they_are),
    }
    found = {}
    for name, (samples, augmentation) in kinds.items():
        chosen = evenly_spaced(NUM_IMAGES, samples.num_images)
        images, target = samples.batch(chosen, augmentation, generator_for("augmentation", 0, 0, work.device))
        prompts.zero_grad()
        torch.autograd.backward(list(learner.losses(images, target, 0.0).values()))
        found[name] = norm_and_share(prompts)
    return found


def norm_and_share(prompts: FrequencyPrompts) -> Json:
    """Norm of the gradient that the prompts have, and the low bands' share of its square."""
    squares: dict[bool, float] = {True: 0.0, False: 0.0}
    for group in _groups(prompts):
        assert group.prompts.grad is not None
        squares[len(group.prompts) == 1] += float(group.prompts.grad.square().sum())  # the low band is alone
    whole = sum(squares.values())
    return {"norm": whole**0.5, "low_share": squares[True] / whole}


def token_cosines(prompts: FrequencyPrompts) -> list[float]:
    """Between the first two prompts of each band, in the order of the masks' rows."""
    pairs = [group.prompts[:, :2].detach() for group in _groups(prompts)]  # bands, 2, channels each
    return [float(F.cosine_similarity(band[0], band[1], dim=0)) for pair in pairs for band in pair]


def _groups(prompts: FrequencyPrompts) -> list[BandPrompts]:
    levels = [prompts.level(level) for level in prompts.banded_levels()]
    return [group for level in levels for group in level.groups if isinstance(group, BandPrompts)]
