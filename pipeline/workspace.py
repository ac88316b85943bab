"""What the training stages share: the run's folder, data on the device, models, fitting, records."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afpkd.distillers import code_digest
from afpkd.errors import UserError
from afpkd.names import in_words
from afpkd.record import Json, provenance, write_record, write_text
from afpkd.settings import TrainSettings
from pipeline.event_files import event_files_of
from pipeline.exportable import require_export
from pipeline.lineage import CURVES, UNFINISHED, WEIGHTS, outputs_of, require_recorded
from pipeline.live import Live, Pictures, forget_progress
from pipeline.memory import keep_freed_memory
from pipeline.networks import arch_of, build_network, facts_beside_weights, facts_of, network_in, require_own_code
from pipeline.progress import StageProgress
from pipeline.recipe import Distill, Recipe
from pipeline.recipe_detection import DistillDetector, TrainedDetector
from pipeline.recipe_folder import FolderData
from pipeline.recipe_networks import TrainedTeacher
from pipeline.recipe_reader import load_recipe, recipe_path
from pipeline.recorded import BUILT_FROM, recorded
from pipeline.splits import augmentation_of, splits_of
from pipeline.train_device import machine_with, records_steps, torch_device

if TYPE_CHECKING:
    import torch
    from torch import nn

    from afpkd.learners import FrozenTeacher, Learner
    from afpkd.models.outputs import Shapes
    from afpkd.prompts import FrequencyPrompts
    from afpkd.train import Fitted, Fitting

NUM_CALIBRATION = 500  # training images from which the amplitude of the teacher's bands is taken


@dataclasses.dataclass(frozen=True)
class Run:
    """One recipe in one folder of runs. device: auto | cpu | cuda; threads: 0 = torch's default; processes: of it."""

    name: str
    recipe: Recipe
    recipe_file: Path
    folder: Path
    device: str = "auto"
    threads: int = 0
    processes: int = 1

    def role(self, role: str) -> Path:
        """The folder of a role (or of the prompts)."""
        return self.folder / role


def open_run(recipe: str, runs: Path, *, device: str = "auto", threads: int = 0, processes: int = 1) -> Run:
    """Read the recipe; nothing is written."""
    name, decoded = load_recipe(recipe)
    return Run(name, decoded, recipe_path(recipe), runs.resolve() / name, device, threads, processes)


class Workspace:
    """One training stage at work: data on the device, models, fitting, records."""

    def __init__(self, run: Run, stage: str) -> None:
        import torch

        from afpkd.distributed import first_alone, is_first

        keep_freed_memory()
        torch.manual_seed(run.recipe.seed)  # initial weights are the seed's alone
        provenance()  # of the code that runs now, not of what the folder holds hours later
        self.run, self.stage = run, stage
        self.folder = run.role(stage)
        self.device = torch_device(run.device, run.threads, run.processes)
        self.progress = StageProgress(stage, silent=not is_first())
        self.progress.busy("reading the data")
        run.recipe.stage_digest(stage)  # before anything is read: what changes later is another run's
        with first_alone():
            found = splits_of(run.recipe, run.recipe_file, self.device)
        self.notes = found.notes
        for note in self.notes:
            self.progress.say(note)
        self.task, self.train, self.heldout, self.test = found.task, found.train, found.heldout, found.test
        self.label_names, self.in_channels, self.image_size = found.label_names, found.in_channels, found.image_size
        self.normalisation = found.normalisation
        self.inputs: Json = {"data": found.sha256}

    def empty_model(self, network: Json, *, published: bool = False) -> nn.Module:
        """A model on the device, its weights about to be loaded; or, with `published`, those of its library."""
        import torch

        if published:
            self.progress.say(f"looking for the weights of {network['arch']}")
        model = build_network(
            network,
            num_classes=len(self.label_names),
            in_channels=self.in_channels,
            image_size=self.image_size,
            given=self.normalisation,
            published=published,
        )
        # channels last: a fifth less time for convolutions on most machines, the same numbers
        return model.to(self.device).to(memory_format=torch.channels_last)

    def new_model(self, network: Json, settings: TrainedTeacher | TrainedDetector | Distill) -> nn.Module:
        """A model to train, known to export before any time is spent on it; it starts where its settings say."""
        import torch

        from afpkd.checkpoint import load_weights
        from afpkd.data.dataset import data_root
        from afpkd.distributed import first_alone

        weights, export = settings.weights, self.run.recipe.export
        with first_alone():  # it may download them
            model = self.empty_model(network, published=weights == "default")
        example = torch.zeros(1, self.in_channels, *self.image_size)
        require_export(
            model, example, network, num_classes=len(self.label_names), opsets=export.opsets, half=export.half
        )
        if weights not in ("none", "default"):
            self.progress.say(load_weights(model, Path(weights), new_classes=len(self.label_names)))
        backbone = settings.backbone if isinstance(settings, TrainedDetector | DistillDetector) else "none"
        if backbone != "none":
            detector: Any = model
            self.progress.say(f"looking for the weights of {backbone}")
            with first_alone():
                self.progress.say(detector.load_backbone(backbone, (self.run.recipe_file.parent, data_root())))
        return model

    def teacher(self) -> tuple[FrozenTeacher, Shapes]:
        """The recipe's trained teacher, frozen, and its shapes; UserError below `min_top1`."""
        from afpkd.checkpoint import load_weights
        from afpkd.learners import FrozenTeacher
        from afpkd.models import probe_shapes

        folder = self.run.role("teacher")
        record = recorded(folder / "record.json", *BUILT_FROM, "metrics")
        key, name = ("min_ap50", "ap50") if self.task.metric == "ap" else ("min_top1", "top1")
        score, least = record["metrics"][f"test_{name}_selected"], getattr(self.run.recipe.teacher, key)
        if score < least:
            weak = f"the teacher's test {in_words(name)} is {score:.2f} %, below teacher.{key} = {least:g}"
            mend = f"nothing good is distilled from it; train it longer, fix its weights, or lower {key}"
            raise UserError("E_TEACHER", f"{self.run.name}: {weak}: {mend}")
        self.inputs["teacher"] = require_recorded(folder, WEIGHTS)
        model = self.empty_model(network_in(record, arch_of(self.run.recipe, "teacher")))
        require_own_code(record, arch_of(self.run.recipe, "teacher"), folder / WEIGHTS)
        load_weights(model, folder / WEIGHTS)
        shapes = probe_shapes(model, in_channels=self.in_channels, image_size=self.image_size)
        return FrozenTeacher(model), shapes

    def new_prompts(self, teacher: FrozenTeacher, shapes: Shapes) -> FrequencyPrompts:
        """Untuned prompts, sized and calibrated on the teacher."""
        from afpkd.learners import calibrate
        from afpkd.prompts import FrequencyPrompts

        prompts = FrequencyPrompts(shapes, **self.run.recipe.prompts.shape()).to(self.device)
        calibrate(prompts, teacher, self.train, min(NUM_CALIBRATION, self.task.num_judged))
        return prompts

    def prompts(self, teacher: FrozenTeacher, shapes: Shapes) -> FrequencyPrompts:
        """The prompts that phase 1 left."""
        from afpkd.checkpoint import load_weights

        folder = self.run.role("prompts")
        self.inputs["prompts"] = require_recorded(folder, WEIGHTS)
        prompts = self.new_prompts(teacher, shapes)
        load_weights(prompts, folder / WEIGHTS)
        return prompts

    def fit(self, learner: Learner, settings: TrainSettings, pictures: Pictures | None = None) -> Fitted:
        """Train to the end, showing progress; `pictures`: of what is trained, for TensorBoard.

        Of several processes the first one alone returns, for what is left.
        """
        from afpkd.distributed import is_first, leave

        fitting = self.fitting(learner, settings)
        if is_first():
            event_files = event_files_of(self.run.folder, self.stage)
            fitted = fitting.run(Live(fitting, self.folder, self.progress, event_files, pictures).report)
        else:
            fitted = fitting.run(lambda *_: None)
        if not leave():
            raise SystemExit(0)
        return fitted

    def fitting(self, learner: Learner, settings: TrainSettings) -> Fitting:
        """A training of `learner`, saving to resume beside the outputs: the graph, which deletes, knows it not."""
        from afpkd.learners import drowned
        from afpkd.train import Fitting

        run = self.run
        if settings.compile:
            learner.product.compile()
        where = str(self.device) if run.processes == 1 else f"{run.processes} x {self.device.type}"
        self.progress.say(f"{settings.epochs:g} epochs of {self.train.num_images} images on {where}")
        loss = [code_digest(run.recipe.distill.method)] if self.stage == "student" else []
        fitting = Fitting(
            learner,
            self.train,
            settings,
            augmentation=augmentation_of(run.recipe.data),
            seed=run.recipe.seed,
            checkpoint=self.folder / UNFINISHED,
            # which unfinished run a checkpoint belongs to: the stage's identity, the content of its inputs, its loss
            digest=json.dumps([run.recipe.stage_digest(self.stage), self.inputs, *loss], sort_keys=True),
            recorded=records_steps(self.device, run.recipe, compiled=settings.compile, processes=run.processes),
        )
        if fitting.recorded:
            self.progress.say("each step is recorded once, and replayed as a CUDA graph")
        if self.stage == "student" and (told := drowned(fitting.first_norms)):
            self.progress.say(told)
        if fitting.step:
            self.progress.say(f"continues at step {fitting.step} of {fitting.total_steps}")
        return fitting

    def write_checkpoint(self, model: nn.Module, fitted: Fitted, *, network: Json, method: str) -> Json:
        """Read the test set once, for the last and for the selected epoch; the selected weights travel on."""
        from afpkd.tasks.task import model_scores

        chosen_by = f"heldout_{self.task.metric}"
        self.progress.busy("measuring on the test set")
        model.load_state_dict(fitted.last)
        last = model_scores(self.task, model, self.test)
        model.load_state_dict(fitted.selected)
        selected = model_scores(self.task, model, self.test)
        metrics = {
            **{f"test_{name}_last": score for name, score in last.items()},
            **{f"test_{name}_selected": score for name, score in selected.items()},
            chosen_by: fitted.history[fitted.selected_epoch - 1][chosen_by],
        }
        told = ", ".join(f"{in_words(name)} {score:.2f} %" for name, score in selected.items() if score is not None)
        self.progress.say(f"test {told} (selected epoch {fitted.selected_epoch})")
        record = {
            **self.checkpoint_record(model, network, method),
            "metrics": metrics,
            "selected_epoch": fitted.selected_epoch,
            "epochs": len(fitted.history),
        }
        return self.write(fitted, fitted.selected, record)

    def checkpoint_record(self, model: nn.Module, network: Json, method: str | None) -> Json:
        """What every role's record says of its network."""
        from afpkd.models import num_parameters

        return {
            "schema": "afpkd.checkpoint/1",
            "role": self.stage,
            "task": "detection" if self.task.metric == "ap" else "classification",
            **facts_of(network),
            "method": method,
            "num_params": num_parameters(model),
            "num_classes": len(self.label_names),
            "in_channels": self.in_channels,
            "image_size": list(self.image_size),
            "inputs": self.inputs,
        }

    def write(self, fitted: Fitted, weights: dict[str, torch.Tensor], record: Json) -> Json:
        """Weights and curves first, the record last; then the resume state is no longer needed."""
        from afpkd.checkpoint import save_weights

        (self.folder / "record.json").unlink(missing_ok=True)  # an old record must not vouch for new weights
        save_weights(self.folder / WEIGHTS, weights, facts_beside_weights(record.get("network")))
        write_text(self.folder / CURVES, "".join(json.dumps(row) + "\n" for row in fitted.history))
        forget_progress(self.folder)
        cost = {"cpu_s": round(fitted.cpu_s, 3), "precision": fitted.precision}
        finished = self.finish({**record, **cost}, fitted.wall_s)
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        return finished

    def finish(self, record: Json, wall_s: float) -> Json:
        """Add what every record has, and write it."""
        data = self.run.recipe.data
        whole = {
            **record,
            "recipe": self.run.name,
            "data": data.name,
            **({"folder": dataclasses.asdict(data)} if isinstance(data, FolderData) else {}),
            **({"data_notes": list(self.notes)} if self.notes else {}),
            "preprocessing": dict(zip(("mean", "std"), map(list, self.normalisation), strict=True)),
            "seed": self.run.recipe.seed,
            "config_digest": self.run.recipe.stage_digest(self.stage),
            "outputs": outputs_of(self.folder),
            **provenance(),
            "machine": machine_with(self.device),
            "device": str(self.device),
            "threads": self.run.threads,
            "processes": self.run.processes,
            "wall_s": round(wall_s, 3),
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_record(self.folder / "record.json", whole)
        return whole
