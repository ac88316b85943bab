"""What a recorded step (CUDA graph) asks of the losses: no wait for the device, nothing that Python decides anew."""

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from afpkd import train as training
from afpkd.data.batches import Augmentation, Pixels
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.errors import UserError
from afpkd.learners import FrozenTeacher, Learner, plain_learner, prompt_learner, student_learner
from afpkd.models import MODELS, build_model, probe_shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.settings import TrainSettings
from afpkd.train import Fitting

CLASSES, SIZE, BATCH = 6, 16, 4
PAIR = ("resnet8", "resnet20")
HELDOUT = Pixels(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), (0.5,), (0.3,))
PROMPTS: dict[str, Any] = {"overlap_weight": 1.0, "area": 0.25, "area_weight": 30.0}
AFPKD: tuple[dict[str, Any], ...] = (
    {"mask": "untrained"},
    {"mask": "shuffled"},
    {"mask": "banded"},
    {"mask": "constant", "position_weight": False},
    {"bands": "details", "normalise": "band", "fusion": "1x1"},
    {"kappa": 1.0, "local_branch": True},
)
METHODS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in OPTIONS),
    *(("kd", {"standardise": True}), ("catkd", {"normalise": True})),
    *((name, {"relative": True}) for name in ("imitation", "reviewkd", "afpkd")),
    *(("afpkd", changed) for changed in AFPKD),
]


class _Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Notes each operator that a CUDA graph cannot hold: what reads the device, or sizes its result by what it read.

    (The gradient of prod does, though not while somebody looks on, as here.)
    """

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "randperm", "bincount", "prod")

    found: list[str]

    def __torch_dispatch__(self, operator: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name = operator.__name__.split(".")[0]
        by_mask = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in given[1])
        if name.lstrip("_") in [read.lstrip("_") for read in self.READS] or by_mask:
            self.found.append(operator.__name__)
        return operator(*given, **(named or {}))


def _networks() -> tuple[torch.nn.Module, FrozenTeacher, list[Any]]:
    torch.manual_seed(0)
    student, teacher = (build_model(arch, num_classes=CLASSES, in_channels=3) for arch in PAIR)
    return student, FrozenTeacher(teacher), [_shapes(each) for each in (student, teacher)]


def _shapes(model: torch.nn.Module) -> Any:
    return probe_shapes(model, in_channels=3, image_size=(SIZE, SIZE))


def _student(method: str, changed: dict[str, Any]) -> Learner:
    student, teacher, shapes = _networks()
    options = {**vars(OPTIONS[method]()), **changed}
    if OPTIONS[method].uses_prompts:
        options["prompts"] = FrequencyPrompts(shapes[1])
    return student_learner(student, teacher, build_distiller(method, *shapes, **options), HELDOUT)


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def _waits(learner: Learner) -> list[str]:
    images, target = _batch()
    progress = torch.full((), 0.05)

    def both_passes() -> None:
        losses = learner.losses(images, target, progress)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())

    both_passes()  # the passes before the recording, in which something may be made once and kept
    return _found(both_passes)


def _found(run: Callable[[], object]) -> list[str]:
    waits: Any = _Waits()  # type: ignore[no-untyped-call]  # torch's
    waits.found = []
    with waits:
        run()
    found: list[str] = waits.found
    return found


@pytest.mark.parametrize(("method", "changed"), METHODS, ids=str)
def test_no_step_of_a_method_waits_for_the_device(method: str, changed: dict[str, Any]) -> None:
    assert _waits(_student(method, changed)) == []


@pytest.mark.parametrize("objective", ["choose", "task"])
def test_no_step_of_phase_one_waits_for_the_device(objective: Any) -> None:
    _, teacher, shapes = _networks()
    prompts = FrequencyPrompts(shapes[1])
    assert _waits(prompt_learner(prompts, teacher, HELDOUT, objective=objective, **PROMPTS)) == []


def test_no_batch_waits_for_the_device_but_the_first() -> None:
    def batch() -> object:
        return HELDOUT.batch(torch.arange(2), Augmentation(padding=1), torch.Generator().manual_seed(0))

    batch()  # in which what is normalised by is put on the device
    assert _found(batch) == []


@pytest.mark.parametrize("arch", list(MODELS))
def test_no_step_of_a_network_waits_for_the_device(arch: str) -> None:
    torch.manual_seed(0)
    assert _waits(plain_learner(build_model(arch, num_classes=CLASSES, in_channels=3), HELDOUT)) == []


@pytest.mark.parametrize(
    "reading",
    [
        lambda values: values[values > 0],
        lambda values: values * float(values.mean()),
        lambda values: values * torch.tensor(2.0),
        lambda values: values.prod(dim=0),
        lambda values: values if values.mean() > 0 else -values,
    ],
)
def test_what_reads_the_device_is_seen(reading: Callable[[Tensor], Tensor]) -> None:
    assert _found(lambda: reading(torch.randn(8)))


@pytest.mark.parametrize(("method", "changed"), METHODS, ids=str)
def test_progress_as_a_tensor_is_progress_as_a_number(method: str, changed: dict[str, Any]) -> None:
    learner = _student(method, changed)
    for progress in (0.0, 0.03, 0.5, 1.0):
        as_number = learner.losses(*_batch(), progress)
        as_tensor = learner.losses(*_batch(), torch.full((), progress))
        assert as_number.keys() == as_tensor.keys()
        for name, loss in as_number.items():
            torch.testing.assert_close(as_tensor[name], loss, rtol=1e-6, atol=1e-9)


class _Graph:
    """Stands for a CUDA graph on a CPU: it launches again what ran while it recorded, from the same tensors."""

    fitting: Any

    def replay(self) -> None:
        recorded: Any = self.fitting.recorded
        for name, loss in self.fitting._both_passes(*recorded._inputs, recorded._progress).items():
            recorded._losses[name].copy_(loss.detach())


@contextlib.contextmanager
def _recording(graph: _Graph, stream: object) -> Iterator[None]:
    """Nothing that is launched while a graph records is computed."""
    trained = graph.fitting.learner.trained
    before = copy.deepcopy(trained.state_dict())
    yield
    trained.load_state_dict(before)


class _Stream:
    def __init__(self, device: torch.device | None = None) -> None: ...

    def wait_stream(self, other: object) -> None: ...


def _fitting(folder: Path, *, recorded: bool) -> Fitting:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (24, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    train = Pixels(images, torch.randint(0, CLASSES, (24,), generator=generator), (0.5,), (0.3,))
    settings = TrainSettings(epochs=3, batch_size=BATCH, lr=0.02, schedule="cosine")
    return Fitting(
        _student("afpkd", {"warm_up": 0.7}),
        train,
        settings,
        augmentation=Augmentation(padding=1),
        seed=3,
        checkpoint=folder / f"{recorded}.pt",
        digest="one",
        recorded=recorded,
    )


@pytest.fixture
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, fake in {
        "CUDAGraph": _Graph,
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": contextlib.nullcontext,
        "graph": _recording,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.usefixtures("_fakes")
def test_a_recorded_training_is_the_launched_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched, recorded = (_fitting(tmp_path, recorded=way) for way in (False, True))
    graph: Any = recorded.recorded
    assert (launched.recorded, graph is None) == (None, False)
    graph._graph.fitting = recorded
    passes: list[int] = []
    both_passes = recorded._both_passes

    def counted(*given: Any) -> dict[str, Tensor]:
        passes.append(recorded.step)
        return both_passes(*given)

    monkeypatch.setattr(recorded, "_both_passes", counted)
    for _ in range(launched.total_steps):
        rows = launched.advance(), recorded.advance()
        if rows[0] and rows[1]:
            assert rows[0]["losses"] == pytest.approx(rows[1]["losses"], rel=1e-6)
    assert passes == [0, 1, 2, 3, *range(3, launched.total_steps)]  # recorded once; then the fake's
    assert not any(loss.requires_grad for loss in graph._losses.values())  # else all that made them is kept
    weights = [fitting.fitted().last for fitting in (launched, recorded)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.usefixtures("_fakes")
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("CUDA error: operation not permitted\nwhen capturing"),
            r"\(CUDA error: operation not permitted\)",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "^CUDA out of memory.$"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_one_line(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def ended(graph: _Graph, stream: object) -> Iterator[None]:
        try:
            yield
        finally:  # as torch does it, whose recording cannot end well
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    fitting = _fitting(tmp_path, recorded=True)
    for _ in range(3):
        fitting.advance()

    def refused(*given: Any) -> dict[str, Tensor]:
        raise error

    monkeypatch.setattr(torch.cuda, "graph", ended)
    monkeypatch.setattr(fitting, "_both_passes", refused)
    with pytest.raises((UserError, torch.OutOfMemoryError), match=told):
        fitting.advance()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.usefixtures("_fakes")
def test_the_memory_of_a_training_is_free_when_it_is_let_go(recorded: bool, tmp_path: Path) -> None:
    fitting = _fitting(tmp_path, recorded=recorded)
    fitting.advance()
    gone = weakref.ref(fitting)
    gc.collect()
    gc.disable()  # which nothing calls when a GPU's memory is asked for
    try:
        del fitting
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("_fakes")
def test_a_step_whose_loss_is_scaled_is_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's scaler decides in Python, step by step, whether there is one."""
    monkeypatch.setattr(training, "amp_dtype", lambda *_: torch.float16)
    assert _fitting(tmp_path, recorded=True).recorded is None
