"""Real data: AFPKD, its rivals and its controls by one protocol, the methods of a seed side by side; on a CPU or GPU.

`make bench-accuracy` prints the table from results/cifar100_cpu.jsonl; ARGS=--run trains what is missing (hours; stop
it at any time, the next call goes on); ARGS="--protocol NAME --run" does so for another pair or data set. Every student
of a seed starts from the same weights and sees the same batches in the same augmentation; the frozen teacher's forward
pass is shared, which changes no number (not where steps are recorded as CUDA graphs). Test is read once a run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from afpkd.learners import FrozenTeacher
from afpkd.models.outputs import AnyOutputs
from afpkd.names import look_up
from afpkd.record import Json
from afpkd.train import Fitted, Fitting
from bench import rows
from bench.command import run
from bench.variants import MAIN, PROTOCOLS, PUBLISHED, Protocol, recipe_text
from pipeline.networks import network_of
from pipeline.recipe import Recipe
from pipeline.recipe_networks import ForeignTeacher
from pipeline.recipe_reader import load_recipe
from pipeline.stages import distillation, train_teacher, tune_prompts
from pipeline.train_device import records_steps
from pipeline.workspace import Run, Workspace


def main(arguments: list[str]) -> None:
    """Train missing rows with --run; print the table."""
    parser = argparse.ArgumentParser(prog="make bench-accuracy")
    parser.add_argument("--run", action="store_true", help="train the missing rows first")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="cifar100", help="which pair on which data")
    parser.add_argument("--seeds", type=int, nargs="*", help="of those that the protocol has")
    parser.add_argument("--variants", nargs="*", help="the same")
    parser.add_argument("--folder", type=Path, help="where runs and their states lie")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all of it is trained")
    chosen = parser.parse_args(arguments)
    protocol = PROTOCOLS[chosen.protocol]
    if chosen.device == "cuda":
        protocol = protocol.on_gpu()
    for name in chosen.variants or ():
        look_up("E_UNKNOWN_NAME", "variant", name, protocol.variants)
    if chosen.run:
        seeds = sorted({seed for own in protocol.seeds.values() for seed in own})
        for seed in seeds if chosen.seeds is None else chosen.seeds:
            missing = missing_variants(seed, protocol)
            wanted = [name for name in missing if chosen.variants is None or name in chosen.variants]
            if wanted:
                folder = chosen.folder or Path("runs") / protocol.folder
                train_seed(wanted, seed, folder, protocol, chosen.device)
    found = standing(protocol)
    sys.stdout.write(rows.comparison(found))
    earlier = len(rows.read(protocol.result)) - len(found)
    if earlier:
        sys.stdout.write(f"\n{earlier} rows of {protocol.recipe} as it was are left out\n")
    if found and protocol == MAIN:
        sys.stdout.write("\n" + rows.beside_published(found, load_recipe(PUBLISHED)[1]))


def missing_variants(seed: int, protocol: Protocol = MAIN) -> list[str]:
    """The variants that this seed shall have and has no row of."""
    found = {rows.name_of(row) for row in standing(protocol) if row["seed"] == seed}
    return [name for name in protocol.variants if seed in protocol.seeds[name] and name not in found]


def standing(protocol: Protocol) -> list[Json]:
    """The rows of what the protocol trains today: one of a recipe since changed is none."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = [
            (name, written_run(name, variant, seed, Path(folder), protocol.recipe).recipe)
            for name, variant in protocol.variants.items()
            for seed in protocol.seeds[name]
        ]
    found = rows.read(protocol.result)
    return [row for row in found if any(rows.stands(row, name, recipe) for name, recipe in wanted)]


def train_seed(variants: list[str], seed: int, folder: Path, protocol: Protocol = MAIN, device: str = "cpu") -> None:
    """Train these variants of one seed side by side, and append a row each."""
    runs = [run_of(name, protocol.variants[name], seed, folder, protocol.recipe, device) for name in variants]
    works = [Workspace(run, "student") for run in runs]
    for name, (work, learner_product, fitted) in zip(variants, train_side_by_side(works), strict=True):
        distill = work.run.recipe.distill
        network = network_of(work.run.recipe, "student")
        work.write_checkpoint(learner_product, fitted, network=network, method=distill.method)
        variant = "default" if name == distill.method else name
        row = rows.row_of(work.run.folder, "student", variant)
        rows.append(protocol.result, [row])
        rows.append(f"{protocol.result}_curves", [rows.curve_of(work.run.folder, row)])


def run_of(name: str, variant: Json, seed: int, folder: Path, recipe: str = MAIN.recipe, device: str = "cpu") -> Run:
    """The run of a variant: its recipe written out, its teacher and prompts made once and shared by symbolic links."""
    run = written_run(name, variant, seed, folder, recipe, device)
    shared(run, "teacher", folder / teacher_folder(run.recipe), train_teacher)
    if run.recipe.distill.uses_prompts:
        digest = run.recipe.stage_digest("prompts")[:8]
        shared(run, "prompts", folder / f"prompts-{digest}-seed{seed}", tune_prompts)
    return run


def written_run(name: str, variant: Json, seed: int, folder: Path, recipe: str, device: str = "cpu") -> Run:
    """The run of a variant, on one CPU thread or beside a GPU: its recipe written out, nothing made."""
    place = (folder / f"{name}-seed{seed}").resolve()
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{name}.toml"
    file.write_text(recipe_text(variant, seed, recipe))
    return Run(name, load_recipe(str(file))[1], file, place, device, 1)


def teacher_folder(recipe: Recipe) -> str:
    """One teacher for all seeds where it comes from elsewhere; one a seed where it is trained here."""
    return "teacher" if isinstance(recipe.teacher, ForeignTeacher) else f"teacher-seed{recipe.seed}"


def shared(run: Run, role: str, place: Path, make: Callable[[Run], Json]) -> None:
    """Make a run's teacher or prompts at `place`, once, and link them into its folder."""
    link, place = run.role(role), place.resolve()
    place.mkdir(parents=True, exist_ok=True)
    if link.resolve() != place:  # of an earlier recipe: what is made would overwrite another's and not lie at `place`
        link.unlink(missing_ok=True)
        link.symlink_to(place)
    if not (place / "record.json").exists():
        make(run)


class SharedTeacher(FrozenTeacher):
    """A frozen teacher that remembers its last batch: students side by side ask for the same one."""

    _images: Tensor | None = None
    _outputs: AnyOutputs

    def __call__(self, images: Tensor) -> AnyOutputs:
        """The outputs of the last batch, where it comes again; else a forward pass."""
        if self._images is None or not torch.equal(images, self._images):
            self._images, self._outputs = images, super().__call__(images)
        return self._outputs


def train_side_by_side(works: list[Workspace]) -> list[tuple[Workspace, torch.nn.Module, Fitted]]:
    """Train each workspace's student; all of one seed take each step on one forward pass of the teacher.

    Recorded steps have one each.
    """
    frozen, shapes = works[0].teacher()
    recorded = any(records_steps(work.device, work.run.recipe, compiled=False, processes=1) for work in works)
    teacher = frozen if recorded else SharedTeacher(frozen.model)
    learners, fittings = [], []
    for work in works:
        work.inputs["teacher"] = works[0].inputs["teacher"]
        learners.append(distillation(work, teacher, shapes))
        fittings.append(work.fitting(learners[-1], work.run.recipe.distill))
    _advance_together(fittings, teacher, [work.run.name for work in works])
    return [
        (work, learner.product, fitting.fitted())
        for work, learner, fitting in zip(works, learners, fittings, strict=True)
    ]


def _advance_together(fittings: list[Fitting], teacher: FrozenTeacher, names: list[str]) -> None:
    total = fittings[0].total_steps
    started = said = time.monotonic()
    first = step = min(fitting.step for fitting in fittings)
    while step < total:
        due = [(name, fitting) for name, fitting in zip(names, fittings, strict=True) if fitting.step == step]
        if isinstance(teacher, SharedTeacher):
            with due[0][1].autocast():  # outside of the students' clocks: cpu_s is a student's own cost
                teacher(due[0][1].next_images())
        for name, fitting in due:
            row = fitting.advance()
            if row is not None:
                losses = " ".join(f"{loss} {value:.3f}" for loss, value in row["losses"].items())
                score = row[f"heldout_{fitting.learner.metric_name}"]
                _say(f"{name}: epoch {row['epoch']} held-out {score:.2f} {losses}")
        step += 1
        if time.monotonic() - said > 60:
            said = time.monotonic()
            _say(f"step {step} of {total}, {(said - started) / (step - first) * (total - step) / 60:.0f} min left")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    run(main)
