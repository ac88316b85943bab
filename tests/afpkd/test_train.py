"""The training loop: exact resume, determinism, guards."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from afpkd import train as training
from afpkd.checkpoint import state_sha256
from afpkd.data.batches import Augmentation, Pixels
from afpkd.distillers import build_distiller
from afpkd.distillers.none import NoDistillation
from afpkd.distillers.options import OPTIONS
from afpkd.errors import UserError
from afpkd.learners import FrozenTeacher, Learner, plain_learner, prompt_learner, student_learner
from afpkd.losses import Progress
from afpkd.models import build_model, probe_shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.record import Json
from afpkd.settings import TrainSettings
from afpkd.train import Fitted, Fitting

SETTINGS = TrainSettings(epochs=3, batch_size=8, lr=0.05, schedule="onecycle")


def _pixels(num: int = 28, seed: int = 0) -> Pixels:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Pixels(images, torch.randint(0, 4, (num,), generator=generator), (0.5,), (0.3,))


def _network(arch: str = "resnet8", seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(arch, num_classes=4, in_channels=1)


def _student_learner(method: str, **changed: float) -> Learner:
    student, teacher = _network(), FrozenTeacher(_network("resnet20", seed=1))
    shapes = [probe_shapes(model, in_channels=1, image_size=(8, 8)) for model in (student, teacher.model)]
    options: Json = {**vars(OPTIONS[method]()), **changed}
    if OPTIONS[method].uses_prompts:
        options["prompts"] = FrequencyPrompts(shapes[1])
    return student_learner(student, teacher, build_distiller(method, *shapes, **options), _pixels(seed=9))


BUDGET: dict[str, Any] = {"overlap_weight": 1.0, "area": 0.25, "area_weight": 30.0}


class _KilledError(Exception):
    """Stands for SIGKILL: nothing of ours runs after it."""


def _fit(learner: Learner, checkpoint: Path, kill_at: int | None = None, settings: TrainSettings = SETTINGS) -> Fitted:
    def report(done: int, total: int, row: Json | None) -> None:
        if done == kill_at:
            raise _KilledError

    return _fitting(learner, checkpoint, settings).run(report)


def _fitting(
    learner: Learner, checkpoint: Path, settings: TrainSettings = SETTINGS, train: Pixels | None = None
) -> Fitting:
    return Fitting(
        learner,
        train or _pixels(),
        settings,
        augmentation=Augmentation(padding=1),
        seed=3,
        checkpoint=checkpoint,
        digest="one",
    )


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["none", "kd", "reviewkd", "afpkd"])
@pytest.mark.parametrize("kill_at", [2, 4, 7])
def test_a_killed_run_continues_bit_equal(
    method: str, kill_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _fit(_student_learner(method), tmp_path / "a.pt")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # save after every step, so also in mid-epoch
    with pytest.raises(_KilledError):
        _fit(_student_learner(method), tmp_path / "b.pt", kill_at)
    torch.manual_seed(99)  # another process has another random state
    seen: list[int] = []
    learner = _student_learner(method)
    losses = learner.losses
    counted = dataclasses.replace(learner, losses=lambda x, y, p: seen.append(1) or losses(x, y, p))  # type: ignore[func-returns-value]
    resumed = _fit(counted, tmp_path / "b.pt")
    epochs_left = 3 - kill_at // 3
    # the guard's batch, then only the steps that were not saved, and a batch an epoch for the gradients' norms
    assert len(seen) == 1 + 9 - kill_at + epochs_left
    assert _equal(resumed.last, whole.last)
    assert _equal(resumed.selected, whole.selected)
    timeless = [
        [{k: v for k, v in row.items() if k not in ("wall_s", "images_per_s")} for row in run.history]
        for run in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]
    assert all(row["gradient_norms"].keys() == row["losses"].keys() for row in whole.history)
    assert all(min(row["gradient_norms"].values()) > 0 for row in whole.history)


def _dropout_learner(drawn: list[Tensor]) -> Learner:
    """A network with dropout; what it draws at each pass is kept."""
    network, dropout = _network(), torch.nn.Dropout(0.5)
    dropout.register_forward_hook(lambda _, given, made: drawn.append(made.detach() != 0))
    network.add_module("fc", torch.nn.Sequential(dropout, network.get_submodule("fc")))
    return plain_learner(network, _pixels())


def test_dropout_is_a_function_of_seed_and_step_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    whole_learner, killed_learner, resumed_learner = _dropout_learner(drawn), _dropout_learner([]), _dropout_learner([])
    torch.manual_seed(1)
    whole = _fit(whole_learner, tmp_path / "a.pt")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # save after every step
    torch.manual_seed(2)  # another process, another random state
    with pytest.raises(_KilledError):
        _fit(killed_learner, tmp_path / "b.pt", kill_at=4)
    torch.manual_seed(3)
    assert _equal(_fit(resumed_learner, tmp_path / "b.pt").last, whole.last)
    masks = [mask for mask in drawn if len(mask) == SETTINGS.batch_size]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks[1:4], 2))  # of the first three steps


HALF = torch.float16


@pytest.mark.parametrize("dtypes", [(None, HALF), (HALF, None), (HALF, HALF)])
def test_a_run_continues_on_a_device_that_scales_its_losses_and_on_one_that_does_not(
    dtypes: tuple[torch.dtype | None, torch.dtype | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU and a GPU without bf16, which a CPU in fp16 stands for."""
    monkeypatch.setattr(training, "amp_dtype", lambda device, settings: dtypes[0])
    with pytest.raises(_KilledError):
        _fit(_student_learner("kd"), tmp_path / "c.pt", kill_at=4)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    if dtypes[0] is not None:
        state["scaler"]["scale"] = 1024.0
        torch.save(state, tmp_path / "c.pt")
    monkeypatch.setattr(training, "amp_dtype", lambda device, settings: dtypes[1])
    fitting = _fitting(_student_learner("kd"), tmp_path / "c.pt")
    assert fitting.step == 3
    assert fitting.scaler.get_scale() == {(None, HALF): 65536.0, (HALF, None): 1.0, (HALF, HALF): 1024.0}[dtypes]
    fitted = fitting.run(lambda *_: None)
    assert len(fitted.history) == 3
    assert fitted.precision == ("float16" if dtypes[1] else "float32")
    assert not _equal(fitted.last, _network().state_dict())


def test_a_checkpoint_of_another_configuration_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(_KilledError):
        _fit(_student_learner("none"), tmp_path / "c.pt", kill_at=4)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    torch.save({**state, "digest": "another"}, tmp_path / "c.pt")
    assert _equal(
        _fit(_student_learner("none"), tmp_path / "c.pt").last, _fit(_student_learner("none"), tmp_path / "d.pt").last
    )


def test_the_teacher_is_never_in_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(_KilledError):
        _fit(_student_learner("kd"), tmp_path / "c.pt", kill_at=4)
    trained = torch.load(tmp_path / "c.pt", weights_only=True)["trained"]
    assert {name.split(".")[0] for name in trained} == {"student"}


def test_the_student_starts_the_same_with_and_without_a_teacher() -> None:
    assert state_sha256(_student_learner("none").product) == state_sha256(_student_learner("afpkd").product)


def test_without_distillation_no_step_takes_a_pass_of_the_teacher_and_the_weights_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for uses in (False, True):
        if uses:
            monkeypatch.setattr(NoDistillation, "uses_teacher", True)
        learner, passes = _student_learner("none"), list[int]()
        assert learner.frozen is not None
        learner.frozen.model.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        found.append(_fit(learner, tmp_path / f"{uses}.pt").last)
        assert bool(passes) == uses
    assert _equal(*found)


def test_selected_weights_are_those_of_the_best_heldout_epoch(tmp_path: Path) -> None:
    network, metrics, states = _network(), iter([50.0, 70.0, 60.0]), list[dict[str, Tensor]]()

    def metric() -> float:
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return next(metrics)

    learner = dataclasses.replace(plain_learner(network, _pixels()), metric=metric)
    fitted = _fit(learner, tmp_path / "c.pt")
    assert fitted.selected_epoch == 2
    assert _equal(fitted.selected, states[1])
    assert _equal(fitted.last, states[2])


def _prompts() -> tuple[FrozenTeacher, FrequencyPrompts]:
    teacher = FrozenTeacher(_network("resnet20"))
    return teacher, FrequencyPrompts(probe_shapes(teacher.model, in_channels=1, image_size=(8, 8)))


@pytest.mark.parametrize(("objective", "losses"), [("task", ["task"]), ("choose", ["teacher", "area"])])
def test_prompts_train_inside_a_teacher_that_stays_bit_equal(
    objective: Literal["task", "choose"], losses: list[str], tmp_path: Path
) -> None:
    teacher, prompts = _prompts()
    before, start = state_sha256(teacher.model), state_sha256(prompts)
    learner = prompt_learner(prompts, teacher, _pixels(), objective=objective, **BUDGET)
    fitted = _fit(learner, tmp_path / "p.pt", settings=dataclasses.replace(SETTINGS, optimizer="adam", lr=0.01))
    assert set(fitted.history[0]["losses"]) == {"overlap", *losses}
    assert state_sha256(prompts) != start
    assert state_sha256(teacher.model) == before


def test_a_weight_of_0_switches_a_loss_off_and_the_others_train(tmp_path: Path) -> None:
    row = _fit(_student_learner("kd", task_weight=0.0), tmp_path / "kd.pt").history[0]
    assert set(row["losses"]) == {"kd"}
    for number, off in enumerate(({"area_weight": 0.0}, {"area": 1.0}, {"overlap_weight": 0.0})):
        teacher, prompts = _prompts()
        learner = prompt_learner(prompts, teacher, _pixels(), objective="choose", **{**BUDGET, **off})
        row = _fit(learner, tmp_path / f"{number}.pt", settings=dataclasses.replace(SETTINGS, epochs=1)).history[0]
        assert set(row["losses"]) == {"teacher", "area", "overlap"} - {next(iter(off)).partition("_")[0]}


def test_divergence_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training diverged in epoch"):
        _fit(plain_learner(_network(), _pixels()), tmp_path / "g.pt", settings=dataclasses.replace(SETTINGS, lr=1e30))


def test_the_losses_of_a_long_epoch_in_bf16_are_their_mean(tmp_path: Path) -> None:
    """600 steps an epoch: a sum in bf16 would stand still from step 256 on."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)

    def losses(images: Tensor, target: Tensor, progress: Progress) -> dict[str, Tensor]:
        return {"task": network.weight.bfloat16().sum()}

    settings = TrainSettings(epochs=1, batch_size=2, lr=1e-9)
    learner = Learner(network, network, losses, lambda: 0.0)
    fitting = _fitting(learner, tmp_path / "c.pt", settings, train=_pixels(1200))
    assert fitting.run(lambda *_: None).history[0]["losses"] == {"task": 1.0}


def test_a_teacher_that_moves_is_caught(tmp_path: Path) -> None:
    learner = _student_learner("kd")
    assert learner.frozen is not None
    teacher = learner.frozen
    teacher.model.train()
    with pytest.raises(AssertionError, match="left eval mode"):
        teacher.assert_unchanged()
    teacher.model.eval()
    teacher.model.bn1.running_mean.add_(1e-3)  # type: ignore[operator, union-attr]
    with pytest.raises(AssertionError, match="weights changed"):
        _fit(learner, tmp_path / "t.pt")


def test_golden_first_steps(tmp_path: Path) -> None:
    """Losses of the first steps, kept as a file: a refactoring must reproduce them (CPUs differ in the last bits)."""
    golden = Path(__file__).parents[1] / "golden" / "first_steps.txt"
    lines = []
    expected = golden.read_text().splitlines()
    for method in dict.fromkeys(line.split()[0] for line in expected):
        fitting = _fitting(_student_learner(method), tmp_path / f"{method}.pt")
        for step in range(3):
            before = {name: float(total) for name, total in fitting.sums.items()}
            row = fitting.advance()
            sums = {name: 3 * mean for name, mean in row["losses"].items()} if row else fitting.sums
            lines += [f"{method} {step} {name} {float(sums[name]) - before.get(name, 0):.6f}" for name in sums]
    assert [line.rsplit(" ", 1)[0] for line in lines] == [line.rsplit(" ", 1)[0] for line in expected]
    for ours, theirs in zip(lines, expected, strict=True):
        assert float(ours.split()[-1]) == pytest.approx(float(theirs.split()[-1]), rel=1e-4), ours
