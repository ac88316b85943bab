"""Our training beside that of torchdistill and torchvision, as ratios measured in one process: `make bench-speed`.

One thread; what is compared takes turns within each round, so that a busy machine slows both. A ratio is the median of
all rounds; more than 1: ours is faster (afpkd_step_over_kd_step: how much a step of AFPKD costs beside one of KD).
torchdistill gives losses, fusion modules and a teacher in eval mode, torchvision the usual PIL pipeline; networks are
ours on both sides, on theirs in torch's default memory format. results/speed.json says under which conditions.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchdistill.losses.mid_level import HierarchicalContextLoss, KDLoss
from torchdistill.models.wrapper import Student4KnowledgeReview
from torchvision import transforms

from afpkd.data import DATASETS
from afpkd.data.batches import Augmentation, Pixels, generator_for, pixels_from_split
from afpkd.data.dataset import data_root
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.learners import FrozenTeacher, student_learner
from afpkd.losses import frequency_loss
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.record import Json, write_record
from afpkd.settings import TrainSettings
from afpkd.train import Fitting
from afpkd.wavelet import haar_dwt, num_scales
from bench.command import run
from bench.rows import RESULTS, circumstances
from pipeline.memory import keep_freed_memory

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SETTINGS = TrainSettings(epochs=1.0, lr=0.05, amp="never")
LOGITS = {"student_module_path": ".", "student_module_io": "o", "teacher_module_path": ".", "teacher_module_io": "o"}

Work = Callable[[], object]


class Sizes(NamedTuple):
    """How much is measured. batches: a slice of an epoch; bands: N, C, side of a level's map; tokens: its masks."""

    teacher: str
    student: str
    batch: int
    batches: int
    rounds: int
    workers: int
    bands: tuple[int, int, int]
    tokens: int


FULL = Sizes("resnet56", "resnet20", batch=128, batches=10, rounds=7, workers=2, bands=(32, 64, 32), tokens=6)
QUICK = Sizes("resnet8", "resnet8", batch=4, batches=2, rounds=2, workers=1, bands=(2, 3, 8), tokens=2)


def main(arguments: list[str]) -> None:
    """Measure everything, write results/speed.json and print it."""
    parser = argparse.ArgumentParser(prog="make bench-speed")
    parser.add_argument("--quick", action="store_true", help="tiny networks and random images: does it run? no numbers")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    chosen = parser.parse_args(arguments)
    if chosen.quick and chosen.out == RESULTS / "speed.json":
        parser.error("--quick: name another file with --out")
    torch.set_num_threads(1)
    keep_freed_memory()  # as our stages do; it speeds up both sides here
    sizes, pixels = (QUICK, random_pixels()) if chosen.quick else (FULL, cifar100())
    found = {"conditions": conditions(sizes, images="random" if chosen.quick else "cifar100")}  # the load before ours
    found |= measured(sizes, pixels)
    write_record(chosen.out, found)
    sys.stdout.writelines(f"{name:<38} {found[name]:6.2f}\n" for name in found if "ratio" in name or "over" in name)


def measured(sizes: Sizes, pixels: Pixels) -> Json:
    """All ratios by name, and what each round gave."""
    with tempfile.TemporaryDirectory() as folder:
        trainings = (our_training(method, sizes, pixels, Path(folder)) for method in ("kd", "afpkd", "reviewkd"))
        kd, afpkd, reviewkd = (training.advance for training in trainings)
        loader, in_process = (pil_loader(pixels, sizes, workers) for workers in (sizes.workers, 0))
        their_kd = their_kd_step(*networks(sizes, pixels))
        ready = pixels.normalised(pixels.images[: sizes.batch]).contiguous()
        turns: dict[str, tuple[Work, Work]] = {
            "kd_epoch_ratio_vs_torchdistill": (
                lambda: [their_kd(images, labels) for images, labels in loader],
                lambda: [kd() for _ in range(sizes.batches)],
            ),
            "input_pipeline_ratio_vs_pil": (lambda: list(in_process), lambda: list(our_batches(pixels, sizes))),
            "afpkd_step_over_kd_step": (afpkd, kd),
            "reviewkd_step_ratio_vs_torchdistill": (their_reviewkd_step(*networks(sizes, pixels), ready), reviewkd),
            "freq_loss_ratio_vs_naive": frequency_losses(sizes),
        }
        rounds = {name: ratio(*works, rounds=sizes.rounds) for name, works in turns.items()}
    naive, ours = (saved_bytes(work) for work in frequency_losses(sizes))
    ratios = {name: of_name["median"] for name, of_name in rounds.items()}
    return {**ratios, "freq_loss_memory_ratio_vs_naive": naive / ours, "rounds": rounds}


def ratio(slow: Work, fast: Work, *, rounds: int) -> Json:
    """Seconds of `slow` over seconds of `fast`, each once a round after one to warm up; who is first alternates."""
    seconds: dict[Work, list[float]] = {slow: [], fast: []}
    for turn in range(rounds + 1):
        for work in (slow, fast) if turn % 2 else (fast, slow):
            started = time.perf_counter()
            work()
            seconds[work].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(seconds[slow][1:], seconds[fast][1:], strict=True)]
    over, under = (statistics.median(seconds[work][1:]) for work in (slow, fast))
    return {"median": statistics.median(ratios), "ratios": ratios, "over_s": over, "under_s": under}


def networks(sizes: Sizes, pixels: Pixels) -> tuple[nn.Module, nn.Module]:
    """(student, teacher) in torch's default memory format, the same weights every time."""
    torch.manual_seed(0)
    num_classes = int(pixels.labels.max()) + 1
    student, teacher = (
        build_model(arch, num_classes=num_classes, in_channels=3) for arch in (sizes.student, sizes.teacher)
    )
    return student, teacher


def _shapes(images: Tensor, *nets: nn.Module) -> list[Shapes]:
    return [probe_shapes(net, in_channels=3, image_size=(images.shape[2], images.shape[3])) for net in nets]


def our_training(method: str, sizes: Sizes, pixels: Pixels, folder: Path) -> Fitting:
    """Ours as the stages build it, in fp32; too few steps are taken to end an epoch, which would measure accuracy."""
    student, teacher = (net.to(memory_format=torch.channels_last) for net in networks(sizes, pixels))
    shapes = _shapes(pixels.images, student, teacher)
    options: Json = dict(vars(OPTIONS[method]()))
    if OPTIONS[method].uses_prompts:
        options["prompts"] = FrequencyPrompts(shapes[1])
    return Fitting(
        student_learner(student, FrozenTeacher(teacher), build_distiller(method, *shapes, **options), pixels),
        pixels,
        dataclasses.replace(SETTINGS, batch_size=sizes.batch),
        augmentation=Augmentation(),
        seed=0,
        checkpoint=folder / f"{method}.pt",
        digest="speed",
    )


def their_kd_step(student: nn.Module, teacher: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """A training step with torchdistill's KDLoss."""
    loss, optimizer = KDLoss(**LOGITS, temperature=4.0, alpha=0.1, beta=0.9), _sgd(student, teacher)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            target = {".": {"o": teacher(images).logits}}
        optimizer.zero_grad()
        torch.autograd.backward(loss({".": {"o": student(images).logits}}, target, labels))
        optimizer.step()

    return step


def their_reviewkd_step(student: nn.Module, teacher: nn.Module, images: Tensor) -> Work:
    """A training step with torchdistill's fusion modules and HCL, on a batch that is ready (ours makes its own)."""
    ours, theirs = _shapes(images, student, teacher)
    channels = zip([*ours.channels, ours.pooled], [*theirs.channels, theirs.pooled], strict=True)
    abfs = [
        {"io": "o", "path": level, "kwargs": {"in_channels": c, "mid_channels": ours.pooled, "out_channels": t}}
        for level, (c, t) in enumerate(channels)
    ]
    sides = [1, *(side for side, _ in reversed(ours.sizes))]
    review = Student4KnowledgeReview(student, abfs, torch.device("cpu"), None, distributed=False, sizes=sides)
    hcl, optimizer, fused = HierarchicalContextLoss(**LOGITS), _sgd(review, teacher), list[Any]()
    for block in review.abf_modules:  # deep to shallow
        block.register_forward_hook(lambda module, args, output: fused.append(output))

    def step() -> None:
        fused.clear()
        with torch.no_grad():
            target = teacher(images)
        outputs = review(images)
        review.secondary_forward(dict(enumerate({"o": x} for x in outputs.imitated())))
        loss = nn.functional.cross_entropy(outputs.logits, torch.zeros(len(images), dtype=torch.long))
        for mine, theirs in zip(fused, reversed(target.imitated()), strict=True):
            loss = loss + 0.6 * hcl({".": {"o": mine}}, {".": {"o": theirs}})
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def _sgd(trained: nn.Module, teacher: nn.Module) -> torch.optim.Optimizer:
    teacher.eval()
    parameters, how = trained.train().parameters(), SETTINGS
    return torch.optim.SGD(parameters, lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay)


class _PilImages(Dataset[tuple[Tensor, int]]):
    """The images as torchvision's CIFAR100 gives them: one PIL image at a time, transformed."""

    def __init__(self, pixels: Pixels) -> None:
        self.images, self.labels = pixels.images.permute(0, 2, 3, 1).contiguous().numpy(), pixels.labels.tolist()
        crop, flip = transforms.RandomCrop(pixels.images.shape[-1], 4), transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def pil_loader(pixels: Pixels, sizes: Sizes, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """A slice of an epoch a pass; its workers live on between passes, as they do within a whole epoch."""
    images = _PilImages(pixels)
    sampler = RandomSampler(images, num_samples=sizes.batch * sizes.batches)
    return DataLoader(images, sizes.batch, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def our_batches(pixels: Pixels, sizes: Sizes) -> Iterator[Tensor]:
    """The same slice from our input pipeline."""
    order = torch.randperm(len(pixels.labels))[: sizes.batches * sizes.batch]
    for step, chosen in enumerate(order.view(-1, sizes.batch)):
        generator = generator_for("augmentation", 0, step, torch.device("cpu"))
        yield pixels.batch(chosen, Augmentation(), generator)[0]


def frequency_losses(sizes: Sizes) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """(naive, ours): forward and backward of the frequency loss from the bands of one level; both return the loss."""
    torch.manual_seed(0)
    (num, channels, side), tokens = sizes.bands, sizes.tokens
    maps = torch.randn(2, num, channels, side, side)
    teacher, student = (haar_dwt(each, num_scales((side, side))) for each in maps)
    masks = [torch.rand(num, band.shape[2], tokens, *band.shape[3:]) for band in teacher]
    gates = [torch.rand(num, band.shape[2], tokens).softmax(dim=-1) for band in teacher]
    omega, student = torch.rand(num, channels), [band.requires_grad_() for band in student]

    def naive() -> Tensor:
        """Every token its own masked copy of both bands, as the specification reads."""
        distances, areas = [], []
        for a, b, m, g in zip(teacher, student, masks, gates, strict=True):
            copies = [m.unsqueeze(1) * band.unsqueeze(3) for band in (a, b)]  # N, C, O, T, h, w
            weight = (omega[:, :, None, None] * g.unsqueeze(1))[..., None, None]
            distances.append((weight * (copies[0] - copies[1]).abs()).mean(dim=(1, 4, 5)).sum(dim=-1))
            areas.append((g * m.mean(dim=(-2, -1))).sum(dim=-1))
        loss = (torch.cat(distances, dim=1).sum(dim=1) / torch.cat(areas, dim=1).sum(dim=1)).mean()
        torch.autograd.grad(loss, student)
        return loss.detach()

    def ours() -> Tensor:
        pixels = [torch.einsum("not,nothw->nohw", g, m) for g, m in zip(gates, masks, strict=True)]
        difference = [a - b for a, b in zip(teacher, student, strict=True)]
        loss = frequency_loss(difference, pixels, omega, normalise="level")
        torch.autograd.grad(loss, student)
        return loss.detach()

    return naive, ours


def saved_bytes(work: Work) -> int:
    """Bytes of all tensors that autograd keeps for the backward pass of `work`, each memory once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())


def cifar100() -> Pixels:
    """The training images of CIFAR-100 from AFPKD_DATA."""
    return pixels_from_split(DATASETS["cifar100"].load(data_root()).train, MEAN, STD, torch.device("cpu"))


def random_pixels() -> Pixels:
    """64 images of 8 x 8 pixels."""
    return Pixels(torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64) % 5, MEAN, STD)


def conditions(sizes: Sizes, *, images: str) -> Json:
    """Under which the ratios are measured."""
    return {**sizes._asdict(), "images": images, "threads": torch.get_num_threads(), **circumstances()}


if __name__ == "__main__":
    run(main)
