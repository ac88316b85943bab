"""What is trained in each phase: a teacher, the prompts inside a frozen teacher, a student beside one.

Each function gives the one training loop (`afpkd.train`) a `Learner`: parameters, named losses, held-out metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from afpkd.checkpoint import state_sha256
from afpkd.data.batches import Samples
from afpkd.distillers.distiller import Distiller, Losses
from afpkd.distributed import averaged
from afpkd.evaluate import MOST_PIXELS, in_passes
from afpkd.fusion import FeatureFusion, LevelAdapters
from afpkd.losses import Progress
from afpkd.prompts import Change, FrequencyPrompts, Refined, moments, pooled
from afpkd.tasks.classification import Classification
from afpkd.tasks.task import Forward, Task, model_scores

CHOOSE_TEMPERATURE = 4.0  # softens a teacher that is sure of its training images; the literature's value of KD
CLASSIFICATION = Classification()
DROWNS = 300.0
"""By so much a loss's gradient may begin larger than any other's: on BCCD 600 times cost a student 11 points of AP, on
CIFAR-100 385 times 15 points of what 128 times, FreeKD's best weight there, gave in two epochs."""


@dataclass(frozen=True)
class Learner:
    """One thing to train.

    trained: all modules that learn and are saved to resume (the teacher never is).
    product: the module whose weights are the result; every loss must reach it.
    losses: (normalised images, target, progress in 0..1) -> named, weighted losses.
    metric: held-out score in percent, which chooses the epoch, and its name.
    frozen: the teacher, whose state must never change.
    """

    trained: nn.Module
    product: nn.Module
    losses: Callable[[Tensor, Any, Progress], Losses]
    metric: Callable[[], float]
    frozen: FrozenTeacher | None = None
    metric_name: str = "top1"


class FrozenTeacher:
    """A teacher in eval mode that nothing can flip or move: not a submodule of anything that trains.

    Its state hash is taken once; `assert_unchanged` compares. (BatchNorm statistics move in train mode even without
    gradients: two well-known distillation libraries let their teachers drift so.)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self._sha256 = state_sha256(model)

    def __call__(self, images: Tensor) -> Any:
        """A clean pass without gradients (no_grad, not inference_mode: student losses touch these features)."""
        with torch.no_grad():
            return self.model(images).in_float32()

    def assert_unchanged(self) -> None:
        """Assert that the teacher is still in eval mode and bit-equal to what it was."""
        assert not any(module.training for module in self.model.modules()), "the teacher left eval mode"
        assert state_sha256(self.model) == self._sha256, "the frozen teacher's weights changed"


def plain_learner(model: nn.Module, heldout: Samples, task: Task = CLASSIFICATION) -> Learner:
    """A network and the task loss: a teacher, or the undistilled student."""

    def losses(images: Tensor, target: Any, progress: Progress) -> Losses:
        return task.losses(model, model(images).in_float32(), target)

    return Learner(model, model, losses, heldout_score(task, model, heldout), metric_name=task.metric)


def student_learner(
    student: nn.Module,
    teacher: FrozenTeacher,
    distiller: Distiller,
    heldout: Samples,
    levels: Sequence[int] | None = None,
    task: Task = CLASSIFICATION,
) -> Learner:
    """Phase 2: a student, its teacher and a distillation method.

    levels: which of the student's features imitates each of the teacher's (`matched_levels`); without, one by one.
    """

    def losses(images: Tensor, target: Any, progress: Progress) -> Losses:
        outputs = student(images).in_float32()
        seen = outputs if levels is None else outputs._replace(features=[outputs.features[i] for i in levels])
        own = task.losses(student, outputs, target) if distiller.task_weight else {}
        weighted = {name: distiller.task_weight * loss for name, loss in own.items()}
        taught = distiller(seen, teacher(images), target, progress) if distiller.uses_teacher else {}
        return {**weighted, **taught}

    trained = nn.ModuleDict({"student": student, "distiller": distiller})
    return Learner(trained, student, losses, heldout_score(task, student, heldout), teacher, task.metric)


def drowned(norms: dict[str, float]) -> str | None:
    """A line where one loss's gradient (norms by name, before step 1) leaves nothing of all others'; None where not."""
    first, *others = sorted(norms, key=norms.__getitem__, reverse=True)
    rest = max((norms[name] for name in others), default=norms[first])
    if not rest or norms[first] <= DROWNS * rest:  # none at all: of losses that taught on other batches
        return None
    told = f"loss '{first}' begins with {norms[first] / rest:,.0f} times the gradient of any other"
    return f"{told}: the others may hardly be learnt: lower its weight, or compare features with relative = true"


def heldout_score(task: Task, model: nn.Module, heldout: Samples) -> Callable[[], float]:
    """The score that chooses the epoch."""
    return lambda: model_scores(task, model, heldout)[task.metric] or 0.0


def prompt_learner(
    prompts: FrequencyPrompts,
    teacher: FrozenTeacher,
    heldout: Samples,
    *,
    objective: Literal["choose", "task"],
    overlap_weight: float,
    area: float,
    area_weight: float,
    task: Task = CLASSIFICATION,
) -> Learner:
    """Phase 1: prompts fine-tuned inside the frozen teacher.

    task: L_prompt = CE + lambda L_overlap (FreeKD). On the teacher's own training images, where it is right already,
    the cross-entropy hardly moves the prompts. choose: L_prompt = T^2 KL_T(teacher || prompted teacher) + lambda
    L_overlap + rho mean over levels of max(area - budget, 0)^2, T = 4: what may be dropped without changing what the
    teacher says? (A detector's change has no temperature.) No mask keeps more than an area of 1: as a budget it is
    none. A weight of 0 is no loss rather than a zero one.
    """

    def losses(images: Tensor, target: Any, progress: Progress) -> Losses:
        clean = teacher(images)
        outputs, reports = prompted(prompts, teacher, images, clean)
        named: Losses = {}
        if objective == "task":
            named.update(task.losses(teacher.model, outputs, target))
        else:
            named["teacher"] = task.changed(outputs, clean, CHOOSE_TEMPERATURE)
            if area_weight and area < 1:
                excess = averaged(torch.stack([report.areas.mean() for report in reports])) - area
                named["area"] = area_weight * excess.clamp_min(0).square().mean()
        if overlap_weight:
            named["overlap"] = overlap_weight * torch.stack([report.overlap for report in reports]).mean()
        return named

    def metric() -> float:
        forward: Forward = lambda images: prompted(prompts, teacher, images, teacher(images))[0]  # noqa: E731 (its type on one line)
        return task.scores(forward, heldout)[task.metric] or 0.0

    return Learner(prompts, prompts, losses, metric, teacher, task.metric)


def calibrate(prompts: FrequencyPrompts, teacher: FrozenTeacher, samples: Samples, num: int) -> None:
    """Take the amplitude of the teacher's bands from `num` images, in as many passes as memory asks for."""
    prompts.calibrate(_seen(teacher, samples, num))


def start_adapters(distiller: Distiller, teacher: FrozenTeacher, samples: Samples, num: int) -> None:
    """Let what adapts the student's levels to the teacher's start with the mean and spread of each teacher channel.

    For detectors: the levels of a pyramid are not normalised (a teacher of ours has some four times a BatchNorm's
    spread), and Adam moves a BatchNorm's weight by at most the sum of its learning rates: 1.5 in a whole short recipe.
    """
    adapters = [module for module in distiller.modules() if isinstance(module, FeatureFusion | LevelAdapters)]
    if not adapters:
        return
    levels = zip(*_seen(teacher, samples, num), strict=True)
    found = [pooled([moments(feature[:, None]) for feature in passes]) for passes in levels]
    with torch.no_grad():
        for adapter in adapters:
            for norm, channels in zip(adapter.last_norms(), found, strict=True):
                norm.bias.copy_(channels.mean)
                norm.weight.copy_(channels.std)


def _seen(teacher: FrozenTeacher, samples: Samples, num: int) -> Iterator[list[Tensor]]:
    parts = in_passes(samples.sample(num), 2 * MOST_PIXELS)  # clean passes, without prompts, are half as large
    return (teacher(samples.normalised(part)).features for part in parts)


def prompted(
    prompts: FrequencyPrompts, teacher: FrozenTeacher, images: Tensor, clean: Any, change: Change | None = None
) -> tuple[Any, list[Refined]]:
    """The teacher with its bands refined, and what each level reports.

    A clean pass comes first: the position weights look one level deeper than the level that is being refined.
    """
    reports: list[Refined] = []
    return teacher.model(images, prompts.refiner(clean.features, reports, change)).in_float32(), reports
