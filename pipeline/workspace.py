"""What the training stages share: the run's folder, data on the device, models, fitting, records."""

from __future__ import annotations

import ctypes
import dataclasses
import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING

from afpkd.record import Json, UserError, provenance, read_record, sha256_of, write_record, write_text
from afpkd.settings import TrainSettings
from pipeline.lineage import require_recorded
from pipeline.networks import build_network, facts_of, label, network_in
from pipeline.progress import StageProgress
from pipeline.recipe import Recipe
from pipeline.recipe_folder import FolderData
from pipeline.recipe_reader import load_recipe, recipe_path

if TYPE_CHECKING:
    import torch
    from torch import nn

    from afpkd.data.dataset import Dataset
    from afpkd.learners import FrozenTeacher, Learner
    from afpkd.models.foreign import Normalisation
    from afpkd.models.outputs import Shapes
    from afpkd.prompts import FrequencyPrompts
    from afpkd.train import Fitted, Fitting

WEIGHTS = "model.safetensors"
NUM_CALIBRATION = 500  # training images from which the amplitude of the teacher's bands is taken
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


@dataclasses.dataclass(frozen=True)
class Run:
    """One recipe in one folder of runs. device: auto | cpu | cuda; threads: of torch, 0 = its default."""

    name: str
    recipe: Recipe
    recipe_file: Path
    folder: Path
    device: str = "auto"
    threads: int = 0

    def role(self, role: str) -> Path:
        """The folder of a role (or of the prompts)."""
        return self.folder / role


def open_run(recipe: str, runs: Path, *, device: str = "auto", threads: int = 0) -> Run:
    """Read the recipe; nothing is written."""
    name, decoded = load_recipe(recipe)
    return Run(name, decoded, recipe_path(recipe), runs.resolve() / name, device, threads)


class Workspace:
    """One training stage at work: data on the device, models, fitting, records."""

    def __init__(self, run: Run, stage: str) -> None:
        import torch

        from afpkd.data.batches import pixels_from_split
        from afpkd.data.dataset import channel_statistics, data_root, hold_out

        keep_freed_memory()
        torch.manual_seed(run.recipe.seed)  # initial weights are the seed's alone
        provenance()  # of the code that runs now, not of what the folder holds hours later
        self.run, self.stage = run, stage
        self.folder = run.role(stage)
        self.progress = StageProgress(stage)
        self.device = _torch_device(run)
        run.recipe.stage_digest(stage)  # before anything is read: what changes later is another run's
        wanted = run.recipe.data
        self.spec = wanted.spec
        self.data: Dataset = self.spec.load(data_root())
        for note in self.data.notes:
            self.progress.say(note)
        exported, num_train = run.recipe.export, len(self.data.train.labels)
        if "int8" in exported.precisions and num_train < exported.calibration_images:  # not after hours of training
            raise UserError(
                f"{run.name}: int8 is calibrated on {exported.calibration_images} training images, there are "
                f'{num_train}: set export.precisions = ["fp32", "fp16"]'
            )
        if self.data.heldout is None:
            num = wanted.num_heldout(len(self.data.train.labels))
            rest, heldout = hold_out(self.data.train, num, run.recipe.seed)
        else:
            rest, heldout = self.data.train, self.data.heldout
        given = wanted.mean and wanted.std and (wanted.mean, wanted.std)
        self.normalisation: Normalisation = given or channel_statistics(self.data.train.images)
        self.train, self.heldout, self.test = (
            pixels_from_split(split, *self.normalisation, self.device) for split in (rest, heldout, self.data.test)
        )
        self.inputs: Json = {"data": self.data.sha256()}

    def empty_model(self, network: Json, *, published: bool = False) -> nn.Module:
        """A model on the device, its weights about to be loaded; or, with `published`, those of its library."""
        import torch

        model = build_network(
            network,
            num_classes=self.spec.num_classes,
            in_channels=self.spec.in_channels,
            image_size=self.spec.image_size,
            given=self.normalisation,
            published=published,
        )
        # channels last: a fifth less time for convolutions on most machines, the same numbers
        return model.to(self.device).to(memory_format=torch.channels_last)

    def new_model(self, network: Json, weights: str) -> nn.Module:
        """A model to train, known to export before any time is spent on it; `weights`: where it starts."""
        import torch

        from afpkd.checkpoint import load_weights
        from export.to_onnx import dry_run_export

        model = self.empty_model(network, published=weights == "default")
        with torch.random.fork_rng():  # the exporter's draws must not move the weights that are drawn next
            example = torch.zeros(1, self.spec.in_channels, *self.spec.image_size)
            dry_run_export(model, example, arch=label(network["arch"]))
        if weights not in ("none", "default"):
            self.progress.say(load_weights(model, Path(weights), new_classes=self.spec.num_classes))
        return model

    def teacher(self) -> tuple[FrozenTeacher, Shapes]:
        """The recipe's trained teacher, frozen, and its shapes; UserError below `min_top1`."""
        from afpkd.checkpoint import load_weights
        from afpkd.learners import FrozenTeacher
        from afpkd.models import probe_shapes

        folder = self.run.role("teacher")
        record = read_record(folder / "record.json")
        top1, least = record["metrics"]["test_top1_selected"], self.run.recipe.teacher.min_top1
        if top1 < least:
            raise UserError(
                f"{self.run.name}: the teacher's test accuracy is {top1:.2f} %, below teacher.min_top1 = {least:g}: "
                "nothing good is distilled from it; train it longer, fix its weights, or lower min_top1"
            )
        self.inputs["teacher"] = require_recorded(folder, WEIGHTS)
        model = self.empty_model(network_in(record))
        load_weights(model, folder / WEIGHTS)
        shapes = probe_shapes(model, in_channels=self.spec.in_channels, image_size=self.spec.image_size)
        return FrozenTeacher(model), shapes

    def new_prompts(self, teacher: FrozenTeacher, shapes: Shapes) -> FrequencyPrompts:
        """Untuned prompts, sized and calibrated on the teacher."""
        from afpkd.prompts import FrequencyPrompts

        prompts = FrequencyPrompts(shapes, **self.run.recipe.prompts.shape()).to(self.device)
        prompts.calibrate(teacher(self.train.normalised(self.train.images[:NUM_CALIBRATION])).features)
        return prompts

    def prompts(self, teacher: FrozenTeacher, shapes: Shapes) -> FrequencyPrompts:
        """The prompts that phase 1 left."""
        from afpkd.checkpoint import load_weights

        folder = self.run.role("prompts")
        self.inputs["prompts"] = require_recorded(folder, WEIGHTS)
        prompts = self.new_prompts(teacher, shapes)
        load_weights(prompts, folder / WEIGHTS)
        return prompts

    def fit(self, learner: Learner, settings: TrainSettings) -> Fitted:
        """Train to the end, showing progress."""
        return self.fitting(learner, settings).run(self.progress.step)

    def fitting(self, learner: Learner, settings: TrainSettings) -> Fitting:
        """A training of `learner`, saving to resume beside the outputs (undeclared to the graph, so a kill never
        deletes it)."""
        from afpkd.train import Augmentation, Fitting

        data = self.run.recipe.data
        if settings.compile:
            learner.product.compile()
        self.progress.say(f"{settings.epochs:g} epochs of {len(self.train.labels)} images on {self.device}")
        return Fitting(
            learner,
            self.train,
            settings,
            augmentation=Augmentation(data.crop_padding, data.flip, data.crop_scale, data.rotation),
            seed=self.run.recipe.seed,
            checkpoint=self.folder / "checkpoint.pt",
            digest=self._resume_digest(),
        )

    def write_checkpoint(self, model: nn.Module, fitted: Fitted, *, network: Json, method: str) -> Json:
        """Read the test set once, for the last and for the selected epoch; the selected weights travel on."""
        from afpkd.evaluate import model_top1

        model.load_state_dict(fitted.last)
        last = model_top1(model, self.test)
        model.load_state_dict(fitted.selected)
        metrics = {
            "test_top1_last": last,
            "test_top1_selected": model_top1(model, self.test),
            "heldout_top1": fitted.history[fitted.selected_epoch - 1]["heldout_top1"],
        }
        self.progress.say(f"test top-1 {metrics['test_top1_selected']:.2f} % (selected epoch {fitted.selected_epoch})")
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
            **facts_of(network),
            "method": method,
            "num_params": num_parameters(model),
            "num_classes": self.spec.num_classes,
            "in_channels": self.spec.in_channels,
            "image_size": list(self.spec.image_size),
            "inputs": self.inputs,
        }

    def write(self, fitted: Fitted, weights: dict[str, torch.Tensor], record: Json) -> Json:
        """Weights and curves first, the record last; then the resume state is no longer needed."""
        from afpkd.checkpoint import save_weights

        (self.folder / "record.json").unlink(missing_ok=True)  # an old record must not vouch for new weights
        save_weights(self.folder / WEIGHTS, weights)
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in fitted.history))
        cost = {"cpu_s": round(fitted.cpu_s, 3), "precision": fitted.precision}
        finished = self.finish({**record, **cost}, fitted.wall_s)
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return finished

    def finish(self, record: Json, wall_s: float) -> Json:
        """Add what every record has, and write it."""
        data = self.run.recipe.data
        whole = {
            **record,
            "recipe": self.run.name,
            "data": data.name,
            **({"folder": dataclasses.asdict(data)} if isinstance(data, FolderData) else {}),
            **({"data_notes": list(self.data.notes)} if self.data.notes else {}),
            "preprocessing": dict(zip(("mean", "std"), map(list, self.normalisation), strict=True)),
            "seed": self.run.recipe.seed,
            "config_digest": self.run.recipe.stage_digest(self.stage),
            "outputs": {WEIGHTS: sha256_of(self.folder / WEIGHTS)},
            **provenance(),
            "device": str(self.device),
            "threads": self.run.threads,
            "wall_s": round(wall_s, 3),
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_record(self.folder / "record.json", whole)
        return whole

    def _resume_digest(self) -> str:
        """Which unfinished run a checkpoint belongs to: the stage's identity and the content of its inputs."""
        return json.dumps([self.run.recipe.stage_digest(self.stage), self.inputs], sort_keys=True)


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of tensors instead of returning it to the kernel and faulting it in again.

    Measured on a CPU: 10 to 17 % of a distillation step. Other C libraries have no such switch and are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
        mallopt(parameter, value)


def _torch_device(run: Run) -> torch.device:
    import torch

    if run.threads:
        torch.set_num_threads(run.threads)
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("TRAIN_DEVICE=cuda: torch finds no CUDA device here: use TRAIN_DEVICE=cpu or auto")
    name = "cpu" if run.device == "cpu" or not torch.cuda.is_available() else "cuda"
    return torch.device(name)
