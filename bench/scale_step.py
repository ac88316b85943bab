"""The training step whose growth `bench.scale` measures: AFPKD's, on networks and images of any size."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afpkd.data.batches import Augmentation, Pixels
from afpkd.distillers import build_distiller
from afpkd.distillers.options import AfpkdOptions
from afpkd.learners import FrozenTeacher, student_learner
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Outputs, Refine, average_pooled
from afpkd.prompts import FrequencyPrompts
from afpkd.settings import TrainSettings
from afpkd.train import Fitting
from pipeline.memory import keep_freed_memory

CLASSES = 10


class Levels(nn.Module):
    """Convolutions at full resolution, each a level: the next level costs as much as the one before."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(levels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels))
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """N, 3, H, W -> outputs with as many features as levels; nothing is refined here."""
        x, features = self.stem(x), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            features.append(norm(stage(F.relu(x))))
            x = features[-1]
        final = F.relu(x)
        pooled = average_pooled(final)
        return Outputs(self.fc(pooled), features, pooled, final, self.fc)


def fitting_of(folder: Path, *, batch: int, side: int, levels: int, steps: int) -> Fitting:
    """A distillation whose first epoch is longer than `steps`. levels: 0 = ResNet-20 -> ResNet-8, else `Levels`."""
    keep_freed_memory()  # as the stages do
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch * (steps + 1), 3, side, side), dtype=torch.uint8)
    pixels = Pixels(images, torch.randint(0, CLASSES, (len(images),)), (0.5,) * 3, (0.25,) * 3)
    student, teacher = (net.to(memory_format=torch.channels_last) for net in _pair(levels))
    shapes = [probe_shapes(net, in_channels=3, image_size=(side, side)) for net in (student, teacher)]
    options = {**vars(AfpkdOptions()), "prompts": FrequencyPrompts(shapes[1])}
    return Fitting(
        student_learner(student, FrozenTeacher(teacher), build_distiller("afpkd", *shapes, **options), pixels),
        pixels,
        TrainSettings(epochs=1, batch_size=batch),
        augmentation=Augmentation(),
        seed=0,
        checkpoint=folder / "checkpoint.pt",
        digest="scale",
    )


def _pair(levels: int) -> tuple[nn.Module, nn.Module]:
    if levels:
        return Levels(levels, 16), Levels(levels, 32)
    student, teacher = (build_model(arch, num_classes=CLASSES, in_channels=3) for arch in ("resnet8", "resnet20"))
    return student, teacher
