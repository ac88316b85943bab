"""Trainings of one process, or of two real ones that share each batch.

`python -m tests.afpkd.sharing FOLDER RANK`, twice: they meet in FOLDER, train every case and leave what they saw there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from afpkd import train
from afpkd.data.batches import Augmentation, Pixels, Samples
from afpkd.data.coco_batches import Scenes
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.distributed import first_alone, is_first, seed_step
from afpkd.errors import UserError
from afpkd.learners import FrozenTeacher, Learner, plain_learner, prompt_learner, prompted, student_learner
from afpkd.models import build_model, probe_shapes
from afpkd.models.fcos import FcosDetector
from afpkd.prompts import FrequencyPrompts
from afpkd.record import Json
from afpkd.settings import TrainSettings
from afpkd.tasks.detection import Detection
from afpkd.train import Fitting
from deploy.agent.detections import Rule, detections_of
from tests.scenes import CANVAS, write_scenes

PROCESSES = 2
STEPS_BEFORE_THE_KILL = 7
SETTINGS = TrainSettings(epochs=4, batch_size=8, lr=0.02, schedule="onecycle")  # 20 steps
GENTLY = dataclasses.replace(SETTINGS, lr=0.001)


def pixels(num: int = 44, seed: int = 0) -> Pixels:
    """Random images of four classes, strong and faint ones; an epoch leaves four of them out."""
    generator = torch.Generator().manual_seed(seed)
    contrast = (1 + torch.rand(num, 1, 1, 1, generator=generator)) / 2
    images = (contrast * torch.randint(0, 256, (num, 1, 8, 8), generator=generator)).to(torch.uint8)
    return Pixels(images, torch.randint(0, 4, (num,), generator=generator), (0.5,), (0.3,))


def network(arch: str = "resnet8", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(arch, num_classes=4, in_channels=1)


def without_batch_norm(module: nn.Module) -> None:
    """GroupNorm in its place: an image's result then depends on no other image."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            without_batch_norm(child)


def student(method: str, **options: Any) -> Learner:
    net, teacher = network(), FrozenTeacher(network("resnet20", seed=1))
    shapes = [probe_shapes(each, in_channels=1, image_size=(8, 8)) for each in (net, teacher.model)]
    wanted: Json = {**vars(OPTIONS[method]()), **options}
    if OPTIONS[method].uses_prompts:
        wanted["prompts"] = FrequencyPrompts(shapes[1])
    learner = student_learner(net, teacher, build_distiller(method, *shapes, **wanted), pixels(seed=9))
    without_batch_norm(learner.trained)
    return learner


def plain(change: Callable[[nn.Module], object] = without_batch_norm) -> Learner:
    net = network()
    change(net)
    return plain_learner(net, pixels(seed=9))


def with_dropout(net: nn.Module) -> None:
    without_batch_norm(net)
    net.add_module("fc", nn.Sequential(nn.Dropout(0.5), net.get_submodule("fc")))


def prompts(objective: Literal["choose", "task"]) -> Learner:
    """A budget of area that batches hardly exceed: the square of the excess is far from the mean of its parts'."""
    teacher = FrozenTeacher(network("resnet20", seed=1))
    module = FrequencyPrompts(probe_shapes(teacher.model, in_channels=1, image_size=(8, 8)))
    images = pixels()
    seen = images.normalised(images.images)
    module.calibrate([teacher(seen).features])
    for name, parameter in module.named_parameters():
        if name.endswith(("prompts", "gate_weight")):
            nn.init.normal_(parameter, std=1.0)  # masks that differ from image to image
    with torch.no_grad():
        reports = [prompted(module, teacher, part, teacher(part))[1] for part in torch.split(seen, 4)]
    areas = [float(torch.stack([level.areas.mean() for level in report]).mean()) for report in reports]
    return prompt_learner(
        module, teacher, pixels(seed=9), objective=objective, overlap_weight=0.5, area=min(areas), area_weight=300
    )


def scenes(folder: Path) -> Scenes:
    return Scenes(write_scenes(folder, 20), CANVAS, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))


TASK = Detection(partial(detections_of, rule=Rule()))


def detector(seed: int = 0) -> FcosDetector:
    """Its BatchNorms as at a published backbone: frozen."""
    torch.manual_seed(seed)
    net = FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=3)
    net.freeze_norms()
    return net


def detector_prompts(samples: Scenes) -> Learner:
    teacher = FrozenTeacher(detector(seed=1))
    module = FrequencyPrompts(probe_shapes(teacher.model, in_channels=3, image_size=CANVAS))
    module.calibrate([teacher(samples.normalised(samples.sample(4))).features])
    return prompt_learner(
        module, teacher, samples, objective="choose", overlap_weight=0.0, area=0.1, area_weight=30.0, task=TASK
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A training: its learner, made with the samples that it is taught; how; and whether these are scenes."""

    learner: Callable[[Any], Learner]
    settings: TrainSettings = SETTINGS
    detects: bool = False


CASES = {
    "plain": Case(lambda _: plain()),
    "kd": Case(lambda _: student("kd")),
    "afpkd": Case(lambda _: student("afpkd", warm_up=0.5)),
    "unused": Case(lambda _: student("afpkd", gamma=0.0)),  # the pooled vector's adapter then takes part in no loss
    "choose": Case(lambda _: prompts("choose"), GENTLY),
    "task": Case(lambda _: prompts("task"), GENTLY),
    "detector": Case(lambda found: plain_learner(detector(), found, TASK), GENTLY, detects=True),
    "detector prompts": Case(detector_prompts, GENTLY, detects=True),
}
OTHERWISE = {"batch norm": Case(lambda _: plain(lambda _: None)), "dropout": Case(lambda _: plain(with_dropout))}
"""What two processes do otherwise than one."""


class KilledError(Exception):
    """Stands for SIGKILL: nothing of ours runs after it."""


def fitting(case: Case, folder: Path, name: str) -> Fitting:
    samples: Samples = scenes(folder / f"{name}-{is_first():d}") if case.detects else pixels()
    return Fitting(
        case.learner(samples),
        samples,
        dataclasses.replace(case.settings, epochs=4 if case.detects else case.settings.epochs),
        augmentation=Augmentation(scales=(0.5, 1.5)) if case.detects else Augmentation(padding=1),
        seed=3,
        checkpoint=folder / f"{name}.pt",
        digest="one",
    )


def seen(training: Fitting, kill_at: int | None = None) -> Json:
    """Train to the end: losses a step, rows, weights, and the images' labels that were taught here."""
    losses: list[dict[str, float]] = []
    taught: list[Tensor] = []
    steps = training.learner.losses
    while training.step < training.total_steps:
        _, target = training._batch(training.step)
        taught.append(target if isinstance(target, Tensor) else torch.stack([each["boxes"].sum() for each in target]))
        before = {name: float(total) for name, total in training.sums.items()}
        row = training.advance()
        done = (training.step - 1) % training.steps_per_epoch + 1
        after = {name: done * mean for name, mean in row["losses"].items()} if row else training.sums
        losses.append({name: float(after[name]) - before.get(name, 0.0) for name in after})
        if training.step == kill_at:
            raise KilledError
    assert steps is training.learner.losses
    fitted = training.fitted()
    state = {name: value.clone() for name, value in training.learner.trained.state_dict().items()}
    return {"losses": losses, "taught": taught, "history": fitted.history, "state": state, "selected": fitted.selected}


def killed(folder: Path, name: str) -> None:
    """A training that saves each step and ends in the midst of an epoch."""
    every, train.CHECKPOINT_SECONDS = train.CHECKPOINT_SECONDS, -1.0
    try:
        seen(fitting(CASES["afpkd"], folder, name), STEPS_BEFORE_THE_KILL)
    except KilledError:
        pass
    finally:
        train.CHECKPOINT_SECONDS = every


def resumed(folder: Path, name: str) -> Json:
    return seen(fitting(CASES["afpkd"], folder, name))


def _at_each_step(case: str, folder: Path, look: Callable[[nn.Module], Tensor]) -> list[Tensor]:
    """What three steps find when their forward pass begins."""
    training = fitting(OTHERWISE[case], folder, f"steps of {case}")
    found: list[Tensor] = []
    hook = training.learner.product.get_submodule("conv1").register_forward_pre_hook
    hook(lambda *_: found.append(look(training.learner.product).clone()))
    for _ in range(3):
        training.advance()
    return found


def _noise(step: int) -> Tensor:
    seed_step(3, step)
    return torch.rand(100)


def _said(call: Callable[[], object]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "nothing"


def _shared(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    found: Json = {name: seen(fitting(case, folder, name)) for name, case in (CASES | OTHERWISE).items()}
    again = fitting(OTHERWISE["dropout"], folder, "dropout again")
    torch.manual_seed(99)  # another process, another random state
    found["dropout again"] = seen(again)
    found["running"] = _at_each_step("batch norm", folder, lambda net: net.get_buffer("bn1.running_mean"))
    found["seeds"] = _at_each_step("dropout", folder, lambda _: torch.tensor(torch.initial_seed()))
    found["noise"] = [_noise(step) for step in (5, 5, 6)]
    with first_alone():
        found["found"] = (folder / "download").exists()
        if is_first():
            _noise(7).expand(100, 100).matrix_power(500)  # it takes its time
        (folder / "download").touch()
    seen(fitting(CASES["plain"], folder, f"of process {dist.get_rank()}"))
    killed(folder, "two")
    dist.barrier()
    if is_first():
        (folder / "two to one.pt").write_bytes((folder / "two.pt").read_bytes())
    found["two to two"] = resumed(folder, "two")
    found["one to two"] = resumed(folder, "one to two")
    odd = Case(lambda _: plain(), dataclasses.replace(SETTINGS, batch_size=7))
    found["odd batch"] = _said(lambda: fitting(odd, folder, "odd"))
    wild = Case(lambda _: plain(), dataclasses.replace(SETTINGS, lr=1e30))
    found["diverged"] = _said(lambda: seen(fitting(wild, folder, "wild")))
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _shared(Path(sys.argv[1]), int(sys.argv[2]))
