"""The stages: a recipe in, artifacts and records out. Each checks its inputs, calls the layers below, writes a record.

runs/<recipe>/{teacher,prompts,student,undistilled}/{model.safetensors,metrics.jsonl,record.json,bundle/}
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afpkd.errors import UserError
from afpkd.record import Json, read_record, sha256_of
from afpkd.settings import TrainSettings
from pipeline.exporting import excluded_of, export_classifier, export_detector
from pipeline.failures import clear_failure, note_failure
from pipeline.lineage import CURVES, UNFINISHED, WEIGHTS, require_recorded
from pipeline.live import forget_progress
from pipeline.networks import arch_of, facts_beside_weights, network_of, recorded_network, require_own_code
from pipeline.progress import StageProgress
from pipeline.prompt_pictures import NUM_PICTURED, draw_prompts
from pipeline.recipe import Distill
from pipeline.recipe_detection import CocoData, TrainedDetector
from pipeline.recipe_networks import TrainedTeacher
from pipeline.recipe_reader import RECIPES, teacher_weights
from pipeline.recorded import BUILT_FROM, recorded
from pipeline.report.wording import judged
from pipeline.workspace import Run, Workspace

if TYPE_CHECKING:
    from afpkd.learners import FrozenTeacher, Learner
    from afpkd.models.outputs import Shapes


def train_teacher(run: Run) -> Json:
    """Stage `teacher`: train it, or take a foreign one in; either way its test accuracy is measured."""
    settings = run.recipe.teacher
    if not isinstance(settings, TrainSettings):
        return _adopt_teacher(run, teacher_weights(run.recipe, run.recipe_file))
    return _train_plain(run, "teacher", settings)


def train_undistilled(run: Run) -> Json:
    """Stage `undistilled`: the student by the same recipe without its teacher, the control."""
    return _train_plain(run, "undistilled", run.recipe.distill)


def tune_prompts(run: Run) -> Json:
    """Stage `prompts`: fine-tune the frequency prompts inside the frozen teacher (phase 1), and judge them."""
    from afpkd.acceptance import phase_one_report, why_not_accepted
    from afpkd.distillers import require_maps
    from afpkd.learners import prompt_learner
    from afpkd.tasks.task import model_scores

    work = Workspace(run, "prompts")
    settings = run.recipe.prompts
    teacher, shapes = work.teacher()
    require_maps(run.recipe.distill.method, "teacher", shapes)
    prompts = work.new_prompts(teacher, shapes)
    learner = prompt_learner(
        prompts,
        teacher,
        work.heldout,
        task=work.task,
        objective=settings.objective,
        overlap_weight=settings.overlap_weight,
        area=settings.area,
        area_weight=settings.area_weight,
    )
    pictured = work.heldout.sample(NUM_PICTURED)
    features = teacher(work.heldout.normalised(pictured)).features
    fitted = work.fit(learner, settings, lambda folder: draw_prompts(prompts, features, pictured, (), folder))
    work.progress.busy("judging the masks")
    prompts.load_state_dict(fitted.last)
    images = work.heldout.normalised(work.heldout.sample(work.task.num_judged))
    judged = phase_one_report(prompts, teacher, images, work.task)
    draw_prompts(prompts, features, pictured, judged["masks"], work.folder)
    refusal = why_not_accepted(judged)
    work.progress.say(f"the masks choose: {refusal is None}{f': {refusal}' if refusal else ''}")
    metric = work.task.metric
    metrics = {
        f"teacher_heldout_{metric}": model_scores(work.task, teacher.model, work.heldout)[metric],
        f"prompted_heldout_{metric}": fitted.history[-1][f"heldout_{metric}"],
        "median_mask_spread": statistics.median(row["spread"] for row in judged["masks"]),
        "accepted": refusal is None,  # if not, and the recipe demands it, no student is distilled with them
        **judged,
    }
    record = {"schema": "afpkd.prompts/1", "metrics": metrics, "inputs": work.inputs}
    return work.write(fitted, fitted.last, record)


def train_student(run: Run) -> Json:
    """Stage `student`: distil it from the frozen teacher (phase 2)."""
    work = Workspace(run, "student")
    learner = distillation(work, *work.teacher())
    settings = run.recipe.distill
    fitted = work.fit(learner, settings)
    network = network_of(run.recipe, "student")
    return work.write_checkpoint(learner.product, fitted, network=network, method=settings.method)


def distillation(work: Workspace, teacher: FrozenTeacher, teacher_shapes: Shapes) -> Learner:
    """The recipe's new student beside `teacher`, with the recipe's method."""
    import torch

    from afpkd.distillers import build_distiller
    from afpkd.fusion import matched_levels
    from afpkd.learners import start_adapters, student_learner
    from afpkd.models import probe_shapes

    settings = work.run.recipe.distill
    torch.manual_seed(
        work.run.recipe.seed
    )  # building the teacher drew numbers: a student starts as the undistilled one
    student = work.new_model(network_of(work.run.recipe, "student"), settings)
    options: Json = settings.options()
    if settings.uses_prompts:
        untrained = options.get("mask") == "untrained"
        if reads_masks(options):
            _require_choice(work.run)
        options["prompts"] = (work.new_prompts if untrained else work.prompts)(teacher, teacher_shapes)
    shapes = probe_shapes(student, in_channels=work.in_channels, image_size=work.image_size)
    levels = matched_levels(shapes.sizes, teacher_shapes.sizes)
    distiller = build_distiller(settings.method, shapes.at(levels), teacher_shapes, **options).to(work.device)
    if isinstance(work.run.recipe.data, CocoData):
        start_adapters(distiller, teacher, work.train, work.task.num_judged)
    return student_learner(student, teacher, distiller, work.heldout, levels, work.task)


def reads_masks(options: Json) -> bool:
    """Whether a loss of a method that uses prompts reads the masks that phase 1 tuned."""
    return bool(options.get("mu", 1)) and options.get("mask") not in ("untrained", "constant")


def _require_choice(run: Run) -> None:
    """UserError where the recipe's prompts must choose and do not: nothing is distilled with them."""
    from afpkd.acceptance import why_not_accepted

    refusal = why_not_accepted(read_record(run.role("prompts") / "record.json")["metrics"])
    if refusal and run.recipe.prompts.must_choose:
        raise UserError("E_PROMPTS", f"{run.name}: prompts: {refusal}: {run.recipe.prompts.mend()}")


def _train_plain(run: Run, role: str, settings: TrainedTeacher | TrainedDetector | Distill) -> Json:
    from afpkd.learners import plain_learner

    work, network = Workspace(run, role), network_of(run.recipe, role)
    model = work.new_model(network, settings)
    fitted = work.fit(plain_learner(model, work.heldout, work.task), settings)
    return work.write_checkpoint(model, fitted, network=network, method="none")


def _adopt_teacher(run: Run, weights: Path | None) -> Json:
    """Take the weights of a file, or (None) those that the network's library publishes."""
    from afpkd.checkpoint import load_weights, save_weights
    from afpkd.models.foreign import require_published_classes
    from afpkd.tasks.task import model_scores

    started = time.monotonic()
    work, network = Workspace(run, "teacher"), network_of(run.recipe, "teacher")
    if weights is None:
        require_published_classes(network["arch"], len(work.label_names))
    model = work.empty_model(network, published=weights is None)
    if weights is not None:
        work.progress.say(load_weights(model, weights))
    scores = model_scores(work.task, model, work.test)
    for left in ("record.json", CURVES, UNFINISHED):  # of a teacher that was trained here before
        (work.folder / left).unlink(missing_ok=True)
    forget_progress(work.folder)
    save_weights(work.folder / WEIGHTS, model.state_dict(), facts_beside_weights(network))
    metrics = {f"test_{name}_{which}": score for name, score in scores.items() for which in ("last", "selected")}
    metrics[f"heldout_{work.task.metric}"] = None
    work.inputs["weights"] = sha256_of(weights) if weights else sha256_of(work.folder / WEIGHTS)
    facts = {"metrics": metrics, "selected_epoch": None, "epochs": None}
    record = {**work.checkpoint_record(model, network, None), **facts}
    return work.finish(record, time.monotonic() - started)


def export_bundle(run: Run, role: str) -> Json:
    """Stage `export`: the role's selected weights as one bundle that travels."""
    from afpkd.checkpoint import load_weights
    from deploy.build_check import build_check
    from export.making import Order
    from export.quantize import Int8

    folder, wanted = run.role(role), run.recipe.export
    record, weights = recorded(folder / "record.json", *BUILT_FROM, "inputs"), require_recorded(folder, WEIGHTS)
    model = recorded_network(record, arch_of(run.recipe, role))
    require_own_code(record, arch_of(run.recipe, role), folder / WEIGHTS)
    progress = StageProgress(f"export {role}")
    progress.say(load_weights(model, folder / WEIGHTS))
    progress.busy("making and checking the files")
    started = time.monotonic()
    order = Order(
        role=role,
        arch=record["arch"],
        mean=record["preprocessing"]["mean"],
        std=record["preprocessing"]["std"],
        precisions=wanted.precisions,
        opset=wanted.opset,
        lineage={
            "config_digest": run.recipe.stage_digest("export"),
            # teacher -> prompts -> student; null where a network comes from none
            **{kind: record["inputs"].get(kind) for kind in ("teacher", "prompts")},
            "weights": weights,
            "record": sha256_of(folder / "record.json"),
        },
        out=folder / "bundle",
        int8=Int8(wanted.quantizer, wanted.calibration, excluded_of(run, role, record, model, progress.say)),
        legacy=wanted.legacy,
        max_drop=wanted.max_drop,
        build_check=build_check,
        say=progress.say,
    )
    manifest = (export_detector if isinstance(run.recipe.data, CocoData) else export_classifier)(run, model, order)
    progress.say(f"{len(manifest['verification'])} files in {time.monotonic() - started:.1f} s")
    return manifest


def profile(run: Run, roles: Sequence[str], precision: str, device: str) -> list[Json]:
    """Stage `profile`: latency, memory and accuracy of the roles' exported files on a device, in turns."""
    from deploy.measure import Wanted, profile_files

    who = ", ".join(roles) if len(roles) == 1 else precision
    progress = StageProgress(f"profile {who}" if device == "local" else f"{device} {who}")
    settings, folder = run.recipe.profile, run.folder / "profiles" / device
    turns = "" if len(roles) == 1 else f", {' and '.join(roles)} in turns"
    progress.say(f"{precision} on {device}, preset {settings.preset}{turns}")
    wanted = [Wanted(run.role(role) / "bundle", precision, folder / f"{role}-{precision}.json") for role in roles]
    for one in wanted:
        clear_failure(one.out)
    try:
        records = profile_files(
            wanted,
            device=device,
            preset=settings.preset,
            threads=settings.threads,
            scenarios=settings.scenarios,
            recipe=run.name,
            config_digest=run.recipe.stage_digest("profile"),
            progress=progress.job,
        )
    except UserError as error:
        for one in wanted:
            note_failure(one.out, error)
        raise
    for record in records:
        whose = "" if len(roles) == 1 else f"{record['role']}: "
        progress.say(f"{whose}{judged(record)}")
    return records


def report(
    runs: Sequence[Run],
    out: Path,
    *,
    devices: Sequence[str] = (),
    max_latency_ms: float | None = None,
    min_accuracy: float | None = None,
) -> Json:
    """Stage `report`: one page, tables and pictures from the records of a recipe, or of several side by side."""
    from pipeline.report.records import read_records, require_measured
    from pipeline.report.tradeoff import Budget
    from pipeline.report.writing import write_report

    found = []
    for run in runs:
        expected = {name: dataclasses.asdict(published) for name, published in run.recipe.expected.items()}
        found.append(
            read_records(
                run.folder,
                run.name,
                description=run.recipe.description,
                expected=expected,
                devices=devices,
                variables=_make_variables(run),
                out=out,
            )
        )
    require_measured(found, devices)
    written = write_report(found, out, Budget(max_latency_ms, min_accuracy))
    return {kind: str(path) for kind, path in written.items()}


def _make_variables(run: Run) -> dict[str, str]:
    """RECIPE and RUNS as make was or would be told, seen from where the folder of runs lies."""
    runs = run.folder.parent
    shipped = run.recipe_file.parent == RECIPES
    file = run.recipe_file.relative_to(runs.parent) if run.recipe_file.is_relative_to(runs.parent) else run.recipe_file
    return {"RECIPE": run.name if shipped else str(file), **({} if runs.name == "runs" else {"RUNS": str(runs)})}
