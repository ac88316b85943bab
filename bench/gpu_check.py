"""`make gpu-check`: do training and TensorRT on this machine's NVIDIA GPU do what the CPU does, and how fast?

The first AFPKD step of the default pair in fp32, with mixed precision and compiled, each against the CPU's losses; then
one epoch, in images/s, again, and recorded as a CUDA graph: is it the same to the bit? Then the card itself
(gpu_card.py). Then TensorRT: an engine a precision, built here, held to torch's logits, timed as by `make profile`.
Exit code 1 where a check fails, 2 where there is no GPU.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from afpkd.checkpoint import State
from afpkd.data import DATASETS
from afpkd.data.batches import Augmentation, Pixels, pixels_from_split
from afpkd.distillers import build_distiller
from afpkd.distillers.options import AfpkdOptions
from afpkd.errors import UserError
from afpkd.learners import FrozenTeacher, student_learner
from afpkd.models import build_model, probe_shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.record import Json
from afpkd.settings import TrainSettings
from afpkd.train import Fitted, Fitting
from bench.gpu_card import card_table, copies
from deploy.measure import profile_bundle
from export.build import build_bundle
from export.calibration import calibration_images
from export.making import Order
from export.to_onnx import OPSET

DATA = DATASETS["fashion_mnist_5k"]
BATCH = 64
PRECISIONS = ("fp32", "fp16", "int8")
EQUAL = "equal to the bit"
Amp = Literal["gpu", "never"]
# fp32 convolutions on the GPU may use TF32 (10 bits of mantissa), bf16 has 7: a loss is a mean and keeps a digit more.
TOLERANCE = {"fp32": 5e-3, "mixed precision": 5e-2, "compiled": 5e-3}


class Check(NamedTuple):
    """One line of the table: a loss on the GPU against the CPU's."""

    name: str
    loss: str
    cpu: float
    gpu: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the relative difference is within the tolerance."""
        return abs(self.gpu - self.cpu) <= self.tolerance * abs(self.cpu)


def main() -> None:
    """Run all checks and print the table."""
    if not torch.cuda.is_available():
        sys.stderr.write("gpu-check: torch finds no NVIDIA GPU here: nothing was checked\n")
        raise SystemExit(2)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    reference = first_losses(cpu, "never", compiled=False)
    variants: dict[str, tuple[Amp, bool]] = {
        "fp32": ("never", False),
        "mixed precision": ("gpu", False),
        "compiled": ("never", True),
    }
    checks = []
    for name, (amp, compiled) in variants.items():
        losses = first_losses(gpu, amp, compiled=compiled)
        checks += [Check(name, loss, reference[loss], losses[loss], TOLERANCE[name]) for loss in reference]
    whole = {device.type: distil(device, epochs=1.0, amp="gpu", compiled=False) for device in (cpu, gpu)}
    speed = {device: fitted.history[-1]["images_per_s"] for device, fitted in whole.items()}
    sys.stdout.write(table(checks, speed, torch.cuda.get_device_name()))
    again = distil(gpu, epochs=1.0, amp="gpu", compiled=False)
    sys.stdout.write(f"the same epoch again: {told_difference(whole['cuda'].last, again.last)}\n")
    recorded = distil(gpu, epochs=1.0, amp="gpu", compiled=False, recorded=True)
    told = f"{recorded.history[-1]['images_per_s']:,.0f} images/s, {told_difference(again.last, recorded.last)}"
    sys.stdout.write(f"the same epoch, each step recorded once and replayed: {told}\n")
    libraries = copies()
    sys.stdout.write(card_table(libraries))
    engines = measured_engines("local-gpu", "quick")
    sys.stdout.write(engine_table(engines))
    verdicts = [one.ok for found in (checks, libraries, engines) for one in found]
    raise SystemExit(0 if all(verdicts) else 1)


def first_losses(device: torch.device, amp: Amp, *, compiled: bool) -> dict[str, float]:
    """The losses of the first step on `device`."""
    fitted = distil(device, epochs=BATCH / DATA.num_train, amp=amp, compiled=compiled)
    losses: dict[str, float] = fitted.history[-1]["losses"]
    return losses


def told_difference(one: State, other: State) -> str:
    """Whether two students are equal to the bit, and else how far apart their weights are."""
    if all(torch.equal(value, other[name]) for name, value in one.items()):
        return EQUAL
    apart = max(float((value.double() - other[name].double()).abs().max()) for name, value in one.items())
    return f"not equal to the bit: weights differ by {apart:.1e} at most"


def distil(
    device: torch.device,
    *,
    epochs: float,
    amp: Amp,
    compiled: bool,
    images: int = DATA.num_train,
    recorded: bool = False,
) -> Fitted:
    """Distil ResNet-20 into ResNet-8 (both untrained) on `device`."""
    split = DATA.load(Path()).train
    train = pixels_from_split(type(split)(split.images[:images], split.labels[:images]), (0.286,), (0.353,), device)
    torch.manual_seed(0)
    student, teacher = (
        build_model(arch, num_classes=DATA.num_classes, in_channels=DATA.in_channels).to(device)
        for arch in ("resnet8", "resnet20")
    )
    shapes = [probe_shapes(net, in_channels=1, image_size=DATA.image_size) for net in (student, teacher)]
    prompts = FrequencyPrompts(shapes[1]).to(device)
    options = vars(AfpkdOptions(warm_up=0.0))  # full weight from the first step
    distiller = build_distiller("afpkd", *shapes, prompts=prompts, **options).to(device)
    if compiled:
        student.compile()
    heldout = Pixels(train.images[:100], train.labels[:100], train.mean, train.std)
    with tempfile.TemporaryDirectory() as folder:
        return Fitting(
            student_learner(student, FrozenTeacher(teacher), distiller, heldout),
            train,
            TrainSettings(epochs=epochs, batch_size=BATCH, lr=0.01, amp=amp, schedule="cosine"),
            augmentation=Augmentation(padding=0, flip=False),  # the same images on every device
            seed=0,
            checkpoint=Path(folder) / "checkpoint.pt",
            digest="gpu-check",
            recorded=recorded,
        ).run(lambda done, total, row: None)


class Engine(NamedTuple):
    """One line of the second table: a file, run as an engine."""

    precision: str
    record: Json | None
    """The profile, None where it could not be had."""
    error: str | None

    @property
    def ok(self) -> bool:
        """Whether it computed what torch computes, before it was timed and after."""
        return self.record is not None and all(check and check["ok"] for check in self.record["golden"].values())


def measured_engines(device: str, preset: str) -> list[Engine]:
    """Export an untrained ResNet-8, and profile its file of each precision on `device`, as `make profile` would."""
    data = DATA.load(Path())
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=DATA.num_classes, in_channels=DATA.in_channels).eval()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        order = Order(
            role="student",
            arch="resnet8",
            mean=(0.286,),
            std=(0.353,),
            precisions=PRECISIONS,
            opset=OPSET,
            lineage={},
            out=folder / "bundle",
            calibration=calibration_images(data.train.images, seed=0),
        )
        test = data.test
        build_bundle(model, order, images=test.images, labels=test.labels, label_names=data.label_names)
        for precision in PRECISIONS:
            found.append(_engine(folder, device, precision, preset))
    return found


def _engine(folder: Path, device: str, precision: str, preset: str) -> Engine:
    out = folder / f"{precision}.json"
    try:
        record = profile_bundle(
            folder / "bundle",
            device=device,
            precision=precision,
            preset=preset,
            threads=0,
            out=out,
            recipe="gpu-check",
            config_digest="gpu-check",
        )
    except UserError as error:
        return Engine(precision, None, str(error))
    return Engine(precision, record, None)


def engine_table(engines: list[Engine]) -> str:
    """The second table."""
    runtimes = {engine.record["runtime"]["name"]: engine.record["runtime"] for engine in engines if engine.record}
    lines = [f"{runtime['name']} {runtime['version']}, CUDA through {_cuda(runtime)}" for runtime in runtimes.values()]
    lines.append(f"{'resnet8':<8} {'p50 ms':>8} {'max error':>10}  against torch, then the verdict on the time")
    for precision, record, error in engines:
        if record is None:
            lines.append(f"{precision:<8} FAILED: {error}")
            continue
        golden, p50 = record["golden"]["before"], record["latency_ms"]["p50"]
        shown = f"{p50:>8.3f}" if p50 is not None else f"{'none':>8}"
        difference = f"{golden['max_abs']:>10.2e}" if golden["max_abs"] is not None else f"{'not finite':>10}"
        lines.append(f"{precision:<8} {shown} {difference}  {'ok' if golden['ok'] else 'FAILED'}, {record['verdict']}")
    return "\n".join(lines) + "\n"


def _cuda(runtime: Json) -> str:
    return str(runtime.get("cuda", {}).get("library", "none"))


def table(checks: list[Check], images_per_s: dict[str, float], gpu: str) -> str:
    """The one table."""
    lines = [f"GPU: {gpu}", f"{'first step':<16} {'loss':<10} {'CPU':>10} {'GPU':>10}  within"]
    for check in checks:
        verdict = f"{check.tolerance:.1%} {'ok' if check.ok else 'FAILED'}"
        lines.append(f"{check.name:<16} {check.loss:<10} {check.cpu:>10.5f} {check.gpu:>10.5f}  {verdict}")
    speed = ", ".join(f"{device} {value:,.0f}" for device, value in images_per_s.items())
    lines.append(f"one epoch of the default pair, AFPKD, images/s (the first epoch: kernels are chosen in it): {speed}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
