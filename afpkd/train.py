"""The one training loop: a teacher, the prompts, a student.

Everything random is a function of (seed, step), the learning rate is a function of the step, and the rest of the state
(weights, adapters, optimizer, loss scale, running sums) is saved: a killed run continues exactly, bit-equal on a CPU.
No step waits for the device: losses are summed there and read once an epoch.

Several processes may share the steps (`afpkd.distributed`): then the first one alone measures, saves and reports.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afpkd import distributed
from afpkd.amp import amp_dtype
from afpkd.checkpoint import State, copied_state, load_training_state, save_training_state
from afpkd.cuda_graph import RecordedPass
from afpkd.data.batches import Augmentation, Samples, epoch_order, generator_for
from afpkd.errors import UserError
from afpkd.learners import Learner
from afpkd.losses import Progress
from afpkd.record import Json
from afpkd.settings import TrainSettings, learning_rate, require_equal_parts

CHECKPOINT_SECONDS = 60.0
MOST_TRIED = 8  # batches that a loss has to teach something: no box of a detector's first ones may hold a location
NOTHING = 1e-7  # share of the largest loss's gradient that float32 does not tell from none beside it


@dataclass(frozen=True)
class Fitted:
    """The result of one training: weights after the last epoch, and of the best epoch on the held-out split."""

    last: State
    selected: State
    selected_epoch: int
    history: list[Json]
    wall_s: float
    """Seconds of training and held-out evaluation, over all continuations."""
    cpu_s: float
    """CPU seconds of the same, of this process."""
    precision: str
    """In which the networks ran forward: float32, bfloat16 or float16."""


Report = Callable[[int, int, Json | None], None]
"""report(steps done, steps in all, the finished epoch's row or None): progress for whoever watches."""


class Fitting:
    """A training that advances one step a call, so that several can go side by side on one teacher."""

    def __init__(
        self,
        learner: Learner,
        train: Samples,
        settings: TrainSettings,
        *,
        augmentation: Augmentation,
        seed: int,
        checkpoint: Path,
        digest: str,
        recorded: bool = False,
    ) -> None:
        """Check the losses, then restore what `checkpoint` holds of an unfinished run of the same `digest`.

        recorded: replay each step as a CUDA graph (`afpkd.cuda_graph`): on a GPU, and not with fp16's loss scale."""
        if train.num_images < settings.batch_size:
            told = f"batch_size: {settings.batch_size} is more than the {train.num_images} training images"
            raise UserError("E_DATA_LITTLE", told)
        require_equal_parts(settings.batch_size, distributed.num_processes())
        self.learner, self.train, self.settings = learner, train, settings
        self.augmentation, self.seed = augmentation, seed
        self.checkpoint, self.digest = checkpoint, digest
        self.device = train.device
        distributed.synchronise_norms(learner.trained, self.device)
        self.steps_per_epoch = train.num_images // settings.batch_size
        self.total_steps = max(1, round(settings.epochs * self.steps_per_epoch))
        if settings.lr_warm_up >= self.total_steps:
            told = f"lr_warm_up: {settings.lr_warm_up} steps, and the training has {self.total_steps}: lower it"
            raise UserError("E_RECIPE_VALUE", told)
        self.optimizer = _optimizer(learner.trained, settings)
        self.amp_dtype = amp_dtype(self.device, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.step = 0
        self.sums: dict[str, Tensor] = {}
        self.history: list[Json] = []
        self.best_epoch, self.best_state = 0, State()
        self.wall_s = self.cpu_s = self.epoch_started_s = self.saved_s = 0.0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self.first_norms = self._require_working_losses()
        saved = load_training_state(checkpoint, digest)
        if saved is not None:
            self._restore(saved)
        self._shared_losses = distributed.shared(learner.losses, learner.trained, has_unused=self._has_unused())
        self.recorded = RecordedPass(self.device) if recorded and not self.scaler.is_enabled() else None

    def run(self, report: Report) -> Fitted:
        """All remaining steps."""
        while self.step < self.total_steps:
            row = self.advance()
            report(self.step, self.total_steps, row)
        return self.fitted()

    def advance(self) -> Json | None:
        """Take one step; at an epoch's end measure and give its row. Saves every epoch and every minute of work."""
        started, cpu_started = time.monotonic(), time.process_time()
        self._train_step()
        row = self._finish_epoch(started) if self._at_epoch_end() else None
        self.wall_s += time.monotonic() - started
        self.cpu_s += time.process_time() - cpu_started
        if row is not None:
            self.epoch_started_s = self.wall_s
        due = row is not None or self.wall_s - self.saved_s > CHECKPOINT_SECONDS
        if due and distributed.is_first():
            self.saved_s = self.wall_s
            save_training_state(self.checkpoint, {"digest": self.digest, **self._state()})
        return row

    def fitted(self) -> Fitted:
        """The finished training; asserts that the teacher is what it was."""
        if self.learner.frozen is not None:
            self.learner.frozen.assert_unchanged()
        precision = str(self.amp_dtype or torch.float32).removeprefix("torch.")
        product = copied_state(self.learner.product)
        return Fitted(product, self.best_state, self.best_epoch, self.history, self.wall_s, self.cpu_s, precision)

    def next_images(self) -> Tensor:
        """This process's normalised images of the next step: a function of the seed and the step alone."""
        return self._batch(self.step)[0]

    def autocast(self) -> torch.autocast:
        """Mixed precision where the settings and the device have it."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def _train_step(self) -> None:
        """One optimisation step."""
        self.learner.trained.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step, self.total_steps)
        distributed.seed_step(self.seed, self.step)
        given = (*self._batch(self.step), self.step / self.total_steps)
        losses = self.recorded(self._both_passes, *given) if self.recorded else self._both_passes(*given)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, loss in distributed.averaged_losses(losses).items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(loss)) + loss
        self.step += 1
        if self.step == 1 and self.learner.frozen is not None:
            self.learner.frozen.assert_unchanged()

    def _both_passes(self, images: Tensor, target: Any, progress: Progress) -> dict[str, Tensor]:
        """Forward and backward: the losses; gradients are left at the parameters."""
        with self.autocast():
            losses = self._shared_losses(images, target, progress)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(_total(losses)))
        return losses

    def _at_epoch_end(self) -> bool:
        """True after the last step of an epoch, and of the run."""
        return self.step % self.steps_per_epoch == 0 or self.step == self.total_steps

    def _finish_epoch(self, started: float) -> Json:
        """Read the sums, measure on the held-out split, keep the best weights; return the epoch's row."""
        steps = (self.step - 1) % self.steps_per_epoch + 1
        losses = {name: float(total) / steps for name, total in self.sums.items()}  # waits for the device
        self.sums, wall_s = {}, self.wall_s + time.monotonic() - started
        if not all(math.isfinite(value) for value in losses.values()):
            epoch = len(self.history) + 1
            raise UserError("E_TRAIN_DIVERGED", f"training diverged in epoch {epoch}: losses {losses}: lower `lr`")
        last = self._gradient_norms(self.step - 1, (self.step - 1) / self.total_steps)
        score = f"heldout_{self.learner.metric_name}"
        row: Json = {
            "epoch": len(self.history) + 1,
            "step": self.step,
            "lr": learning_rate(self.settings, self.step - 1, self.total_steps),
            "losses": losses,
            "gradient_norms": {name: norm for name, (_, norm) in last.items()},
            score: self.learner.metric() if distributed.is_first() else math.nan,  # the others wait in the next step
            "images_per_s": steps * self.settings.batch_size / max(wall_s - self.epoch_started_s, 1e-9),
            "wall_s": round(wall_s, 3),
        }
        self.history.append(row)
        if row[score] >= max(earlier[score] for earlier in self.history):
            self.best_epoch, self.best_state = row["epoch"], copied_state(self.learner.product)
        return row

    def _state(self) -> dict[str, Any]:
        """Everything needed to continue exactly; the teacher is not in it."""
        return {
            "step": self.step,
            "trained": self.learner.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "epoch_started_s": self.epoch_started_s,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.learner.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"] or self.scaler.state_dict())  # empty: begun where none is scaled
        self.sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        self.step, self.history = state["step"], state["history"]
        self.wall_s, self.cpu_s, self.epoch_started_s = (state[key] for key in ("wall_s", "cpu_s", "epoch_started_s"))
        self.best_epoch, self.best_state = state["best_epoch"], state["best_state"]

    def _require_working_losses(self) -> dict[str, float]:
        """The norm of each loss's gradient on the product before step 1, at full weight.

        UserError where a loss is zero, not finite, or sends no gradient, on the first batch or on a few more.
        """
        taught: set[str] = set()
        for step in range(tried := min(MOST_TRIED, self.total_steps)):
            found = self._gradient_norms(step, 1.0)
            largest = max((gradient for _, gradient in found.values()), default=0.0)
            for name, (value, gradient) in found.items():
                if not math.isfinite(value):
                    raise UserError("E_TRAIN_LOSS", f"loss '{name}' is {value:g} before step 1: it would teach nothing")
                taught |= {name} if value and gradient > NOTHING * largest else set()
            idle = [name for name in found if name not in taught]
            if not idle:
                return {name: gradient for name, (_, gradient) in found.items()}
        fault = "sends no gradient to what is trained" if found[idle[0]][0] else "is 0"
        told = f"loss '{idle[0]}' {fault} on the first batches ({tried} tried): it would teach nothing"
        raise UserError("E_TRAIN_LOSS", told)

    def _gradient_norms(self, step: int, progress: float) -> dict[str, tuple[float, float]]:
        """Value of each loss on the batch of `step`, and the norm of its gradient on the product's parameters.

        BatchNorm statistics are put back: the training does not notice.
        """
        before = copied_state(self.learner.trained)
        self.learner.trained.train()
        parameters = [p for p in self.learner.product.parameters() if p.requires_grad]
        found = {}
        losses = self._losses(step, progress, self.learner.losses)
        values = distributed.averaged_losses(losses)
        for name, loss in losses.items():
            own = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            gradients = distributed.averaged_gradients(own, parameters)
            norms = [g.float().norm() for g in gradients if g is not None]
            found[name] = float(values[name]), float(torch.stack(norms).norm()) if norms else 0.0
        self.learner.trained.load_state_dict(before)
        return found

    def _has_unused(self) -> bool:
        """Whether a parameter takes part in no loss; only processes that train together ask, since it takes a pass."""
        if distributed.num_processes() == 1:
            return False
        before = copied_state(self.learner.trained)
        self.learner.trained.train()
        parameters = [p for p in self.learner.trained.parameters() if p.requires_grad]
        total = _total(self._losses(self.step, 1.0, self.learner.losses))
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        self.learner.trained.load_state_dict(before)
        return any(gradient is None for gradient in gradients)

    def _losses(self, step: int, progress: float, losses: distributed.Losses) -> dict[str, Tensor]:
        images, target = self._batch(step)
        with self.autocast():
            return losses(images, target, progress)

    def _batch(self, step: int) -> tuple[Tensor, Any]:
        """This process's normalised images and targets of a step: a function of the seed and the step alone."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self.train.num_images, self.seed, epoch).to(self.device))
        chosen = self._order[1][index * self.settings.batch_size : (index + 1) * self.settings.batch_size]
        generator = generator_for("augmentation", self.seed, step, self.device)
        return self.train.batch(chosen, self.augmentation, generator, distributed.part_of(len(chosen)))


def _optimizer(trained: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    common: Json = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, **common)
    return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.nesterov, **common)


def _total(losses: dict[str, Tensor]) -> Tensor:
    first, *others = losses.values()
    return sum(others, start=first)
