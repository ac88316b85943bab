"""What is trained in each phase: a teacher, the prompts inside a frozen teacher, a student beside one.

Each function gives the one training loop (`afpkd.train`) a `Learner`: parameters, named losses, held-out metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from afpkd.checkpoint import state_sha256
from afpkd.data.batches import Pixels
from afpkd.distillers.distiller import Distiller, Losses
from afpkd.evaluate import model_top1, top1
from afpkd.losses import soft_target_loss
from afpkd.models.outputs import Outputs
from afpkd.prompts import Change, FrequencyPrompts, Refined
from afpkd.tasks.classification import task_loss

CHOOSE_TEMPERATURE = 4.0  # softens a teacher that is sure of its training images; the literature's value of KD


@dataclass(frozen=True)
class Learner:
    """One thing to train.

    trained: all modules that learn and are saved to resume (the teacher never is).
    product: the module whose weights are the result; every loss must reach it.
    losses: (normalised images, labels, progress in 0..1) -> named, weighted losses.
    metric: held-out accuracy in percent, which chooses the epoch.
    frozen: the teacher, whose state must never change.
    """

    trained: nn.Module
    product: nn.Module
    losses: Callable[[Tensor, Tensor, float], Losses]
    metric: Callable[[], float]
    frozen: FrozenTeacher | None = None


class FrozenTeacher:
    """A teacher in eval mode that nothing can flip or move: not a submodule of anything that trains.

    Its state hash is taken once; `assert_unchanged` compares. (BatchNorm statistics move in train mode even without
    gradients: two well-known distillation libraries let their teachers drift so.)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self._sha256 = state_sha256(model)

    def __call__(self, images: Tensor) -> Outputs:
        """A clean pass without gradients (no_grad, not inference_mode: student losses touch these features)."""
        with torch.no_grad():
            return in_float32(self.model(images))

    def assert_unchanged(self) -> None:
        """Assert that the teacher is still in eval mode and bit-equal to what it was."""
        assert not any(module.training for module in self.model.modules()), "the teacher left eval mode"
        assert state_sha256(self.model) == self._sha256, "the frozen teacher's weights changed"


def in_float32(outputs: Outputs) -> Outputs:
    """Logits that mixed precision left in half precision as float32, where losses are computed; features stay."""
    return outputs._replace(logits=outputs.logits.float())


def plain_learner(model: nn.Module, heldout: Pixels) -> Learner:
    """A network and the task loss: a teacher, or the undistilled student."""

    def losses(images: Tensor, labels: Tensor, progress: float) -> Losses:
        return {"task": task_loss(in_float32(model(images)), labels)}

    return Learner(model, model, losses, lambda: model_top1(model, heldout))


def student_learner(
    student: nn.Module,
    teacher: FrozenTeacher,
    distiller: Distiller,
    heldout: Pixels,
    levels: Sequence[int] | None = None,
) -> Learner:
    """Phase 2: a student, its teacher and a distillation method.

    levels: which of the student's features imitates each of the teacher's (`matched_levels`); without, one by one.
    """

    def losses(images: Tensor, labels: Tensor, progress: float) -> Losses:
        outputs = in_float32(student(images))
        seen = outputs if levels is None else outputs._replace(features=[outputs.features[i] for i in levels])
        distilled = distiller(seen, teacher(images), labels, progress)
        return {"task": distiller.task_weight * task_loss(outputs, labels), **distilled}

    trained = nn.ModuleDict({"student": student, "distiller": distiller})
    return Learner(trained, student, losses, lambda: model_top1(student, heldout), teacher)


def prompt_learner(
    prompts: FrequencyPrompts,
    teacher: FrozenTeacher,
    heldout: Pixels,
    *,
    objective: Literal["choose", "task"],
    overlap_weight: float,
    area: float,
    area_weight: float,
) -> Learner:
    """Phase 1: prompts fine-tuned inside the frozen teacher.

    task: L_prompt = CE + lambda L_overlap (FreeKD). On the teacher's own training images, where it is right already,
    the cross-entropy hardly moves the prompts. choose: L_prompt = KL(teacher || prompted teacher) + lambda L_overlap +
    rho mean over levels of max(area - budget, 0)^2: what may be dropped without changing what the teacher says?
    """

    def losses(images: Tensor, labels: Tensor, progress: float) -> Losses:
        clean = teacher(images)
        outputs, reports = prompted(prompts, teacher, images, clean)
        named: Losses = {}
        if objective == "task":
            named["task"] = task_loss(outputs, labels)
        else:
            named["teacher"] = soft_target_loss(outputs.logits, clean.logits, CHOOSE_TEMPERATURE)
            excess = torch.stack([report.areas.mean() for report in reports]) - area
            named["area"] = area_weight * excess.clamp_min(0).square().mean()
        if overlap_weight:
            named["overlap"] = overlap_weight * torch.stack([report.overlap for report in reports]).mean()
        return named

    def metric() -> float:
        return top1(lambda images: prompted(prompts, teacher, images, teacher(images))[0].logits, heldout)

    return Learner(prompts, prompts, losses, metric, teacher)


def prompted(
    prompts: FrequencyPrompts, teacher: FrozenTeacher, images: Tensor, clean: Outputs, change: Change | None = None
) -> tuple[Outputs, list[Refined]]:
    """The teacher with its bands refined, and what each level reports.

    A clean pass comes first: the position weights look one level deeper than the level that is being refined.
    """
    reports: list[Refined] = []
    return in_float32(teacher.model(images, prompts.refiner(clean.features, reports, change))), reports
