"""What a student and its teacher say of one batch, and distillers between them; a toy of a frozen teacher."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from afpkd.data.batches import Pixels
from afpkd.distillers import build_distiller
from afpkd.distillers.distiller import Distiller
from afpkd.distillers.options import OPTIONS
from afpkd.learners import FrozenTeacher
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Outputs, Shapes
from afpkd.prompts import FrequencyPrompts

LABELS = torch.tensor([0, 3, 1, 4])


class Pair(NamedTuple):
    """What a student and its teacher say of one batch; maps of 12, 6 and 3 pixels: two scales, one scale, none."""

    student: Outputs
    teacher: Outputs
    shapes: tuple[Shapes, Shapes]
    parameters: list[nn.Parameter]


@pytest.fixture(name="pair", scope="module")
def _pair() -> Pair:
    torch.manual_seed(0)
    nets = [build_model(arch, num_classes=5, in_channels=1) for arch in ("resnet8", "resnet20")]
    shapes = [probe_shapes(net, in_channels=1, image_size=(12, 12)) for net in nets]
    nets[1].eval().requires_grad_(False)
    student, teacher = (net(torch.randn(4, 1, 12, 12)) for net in nets)
    return Pair(student, teacher, (shapes[0], shapes[1]), list(nets[0].parameters()))


class Toy(NamedTuple):
    """A small frozen teacher and its images of 12 pixels: maps of 12, 6 and 3 pixels, the last without bands."""

    teacher: FrozenTeacher
    shapes: Shapes
    pixels: Pixels

    @property
    def images(self) -> Tensor:
        """Normalised images N, 1, 12, 12."""
        return self.pixels.normalised(self.pixels.images)


def toy_of(seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    model = build_model("resnet20", num_classes=5, in_channels=1)
    pixels = Pixels(torch.randint(0, 256, (16, 1, 12, 12), dtype=torch.uint8), torch.arange(16) % 5, (0.5,), (0.3,))
    with torch.no_grad():
        for _ in range(20):  # the running statistics become those of the images
            model(pixels.normalised(pixels.images))
    return Toy(FrozenTeacher(model), probe_shapes(model, in_channels=1, image_size=(12, 12)), pixels)


@pytest.fixture(name="toy", scope="module")
def _toy() -> Toy:
    return toy_of()


def drawn(module: nn.Module, *, std: float) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)


def prompts_of(pair: Pair, **form: Any) -> FrequencyPrompts:
    """Prompts that mark something, and gates that tell channels apart, as a phase 1 would leave them."""
    torch.manual_seed(7)
    prompts = FrequencyPrompts(pair.shapes[1], **form)
    prompts.calibrate([pair.teacher.features])
    for parameter in prompts.parameters():
        nn.init.normal_(parameter)
    return prompts


def distiller_of(pair: Pair, method: str, **changed: Any) -> Distiller:
    options = {**vars(OPTIONS[method]()), **changed}
    if OPTIONS[method].uses_prompts:
        options.setdefault("prompts", prompts_of(pair))
    torch.manual_seed(1)
    return build_distiller(method, *pair.shapes, **options)


def losses_of(pair: Pair, method: str, progress: float = 1.0, **changed: Any) -> dict[str, float]:
    losses = distiller_of(pair, method, **changed)(pair.student, pair.teacher, LABELS, progress)
    return {name: float(loss.detach()) for name, loss in losses.items()}


def free_prompts(pair: Pair) -> FrequencyPrompts:
    return prompts_of(pair, united=False, gate=False)
