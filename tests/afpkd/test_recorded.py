"""What a recorded step (CUDA graph) asks of the losses: no wait for the device, nothing that Python decides anew."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from afpkd.data.batches import Pixels
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.learners import FrozenTeacher, Learner, plain_learner, prompt_learner, student_learner
from afpkd.models import build_model, probe_shapes
from afpkd.prompts import FrequencyPrompts

CLASSES, SIZE, BATCH = 6, 16, 4
PAIR = ("resnet8", "resnet20")
HELDOUT = Pixels(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), (0.5,), (0.3,))
PROMPTS = {"overlap_weight": 1.0, "area": 0.25, "area_weight": 30.0}
AFPKD = (
    {},
    {"mask": "untrained"},
    {"mask": "shuffled"},
    {"mask": "banded"},
    {"mask": "constant", "position_weight": False},
    {"bands": "details", "normalise": "band", "fusion": "1x1"},
    {"kappa": 1.0, "local_branch": True},
)
METHODS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("none", "kd", "dkd", "reviewkd", "catkd", "freekd", "imitation")),
    *(("kd", {"standardise": True}), ("catkd", {"normalise": True})),
    *(("afpkd", changed) for changed in AFPKD),
]


class _Waits(TorchDispatchMode):
    """Notes each operator that a CUDA graph cannot hold: what reads the device, or sizes its result by what it read."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "randperm", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

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
    with _Waits() as waits:
        both_passes()
    return waits.found


@pytest.mark.parametrize(("method", "changed"), METHODS, ids=str)
def test_no_step_of_a_method_waits_for_the_device(method: str, changed: dict[str, Any]) -> None:
    assert _waits(_student(method, changed)) == []


@pytest.mark.parametrize("objective", ["choose", "task"])
def test_no_step_of_phase_one_waits_for_the_device(objective: Any) -> None:
    _, teacher, shapes = _networks()
    prompts = FrequencyPrompts(shapes[1])
    assert _waits(prompt_learner(prompts, teacher, HELDOUT, objective=objective, **PROMPTS)) == []


@pytest.mark.parametrize("arch", ["resnet20", "wrn-16-2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_no_step_of_a_network_waits_for_the_device(arch: str) -> None:
    torch.manual_seed(0)
    assert _waits(plain_learner(build_model(arch, num_classes=CLASSES, in_channels=3), HELDOUT)) == []


@pytest.mark.parametrize(
    "reading",
    [
        lambda values: values[values > 0],
        lambda values: values * float(values.mean()),
        lambda values: values * torch.tensor(2.0),
        lambda values: values if values.mean() > 0 else -values,
    ],
)
def test_what_reads_the_device_is_seen(reading: Callable[[Tensor], Tensor]) -> None:
    with _Waits() as waits:
        reading(torch.randn(8))
    assert waits.found


@pytest.mark.parametrize(("method", "changed"), METHODS, ids=str)
def test_progress_as_a_tensor_is_progress_as_a_number(method: str, changed: dict[str, Any]) -> None:
    learner = _student(method, changed)
    for progress in (0.0, 0.03, 0.5, 1.0):
        as_number = learner.losses(*_batch(), progress)
        as_tensor = learner.losses(*_batch(), torch.full((), progress))
        assert as_number.keys() == as_tensor.keys()
        for name, loss in as_number.items():
            torch.testing.assert_close(as_tensor[name], loss, rtol=1e-6, atol=1e-9)
