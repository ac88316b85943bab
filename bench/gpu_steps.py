"""A training step on a GPU, its kernels launched one by one and recorded as a CUDA graph: milliseconds, and the same?

Batches of 128 random images; the median of the steps after the first 20, on networks of the same weights: launched,
launched again and recorded. Exit code 1 where the weights of both ways are not equal to the bit after them, though
those of the launched ones are; 2 where there is no GPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from afpkd.checkpoint import State
from afpkd.data.batches import Augmentation, Pixels
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.fusion import matched_levels
from afpkd.learners import FrozenTeacher, Learner, prompt_learner, student_learner
from afpkd.models import build_model, probe_shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.record import Json, write_text
from afpkd.settings import TrainSettings
from afpkd.train import Fitting
from bench.gpu_check import EQUAL, told_difference
from bench.rows import RESULTS, circumstances

PAIRS = (("resnet56", "resnet20"), ("resnet56", "mobilenetv2"))
METHODS = ("none", "kd", "dkd", "catkd", "reviewkd", "freekd", "afpkd")
PHASE_ONE = "phase 1"
CLASSES, SIZE, BATCH = 100, 32, 128
STEPS, FIRST = 80, 20
SETTINGS = TrainSettings(epochs=2.0, batch_size=BATCH, lr=1e-3, schedule="cosine")


class Steps(NamedTuple):
    """Some steps of one training. ms: of each; weights: after them."""

    ms: list[float]
    weights: State

    def median(self) -> float:
        """Of the steps after the first."""
        return statistics.median(self.ms[FIRST:])


def main() -> None:
    """Measure every method, print the table, write results/gpu_steps.json."""
    if not torch.cuda.is_available():
        sys.stderr.write("gpu_steps: torch finds no NVIDIA GPU here: nothing was measured\n")
        raise SystemExit(2)
    device = torch.device("cuda")
    found = [row_of(pair, method, device) for pair in PAIRS for method in (*METHODS, PHASE_ONE)]
    whole = {"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__, **circumstances(), "rows": found}
    write_text(RESULTS / "gpu_steps.json", json.dumps(whole, indent=1) + "\n")
    sys.stdout.write(table(found))
    raise SystemExit(1 if any(row["difference"] != row["again"] == EQUAL for row in found) else 0)


def row_of(pair: Sequence[str], method: str, device: torch.device) -> Json:
    """One method of one pair, in both ways; `again`: the difference between two that were launched."""
    ways = (False, False, True)
    launched, again, recorded = (train(learner(pair, method, device), device, recorded=way) for way in ways)
    differences = {"again": again.weights, "difference": recorded.weights}
    told = {name: told_difference(launched.weights, weights) for name, weights in differences.items()}
    times = {"launched_ms": launched.median(), "recorded_ms": recorded.median()}
    return {"pair": "-".join(pair), "method": method, **times, **told}


def learner(pair: Sequence[str], method: str, device: torch.device) -> Learner:
    """What is trained, the same each time: untrained networks of this pair, and untuned prompts."""
    torch.manual_seed(0)
    teacher, student = (build_model(arch, num_classes=CLASSES, in_channels=3).to(device) for arch in pair)
    theirs, ours = (probe_shapes(net, in_channels=3, image_size=(SIZE, SIZE)) for net in (teacher, student))
    frozen, heldout = FrozenTeacher(teacher), images_of(2, device)
    prompts = FrequencyPrompts(theirs).to(device)
    if method == PHASE_ONE:
        budget: Json = {"overlap_weight": 1.0, "area": 0.25, "area_weight": 30.0}
        return prompt_learner(prompts, frozen, heldout, objective="choose", **budget)
    options: Json = {**vars(OPTIONS[method]()), **({"prompts": prompts} if OPTIONS[method].uses_prompts else {})}
    levels = matched_levels(ours.sizes, theirs.sizes)
    distiller = build_distiller(method, ours.at(levels), theirs, **options).to(device)
    return student_learner(student, frozen, distiller, heldout, levels)


def images_of(num: int, device: torch.device) -> Pixels:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (num,), generator=generator)
    return Pixels(images.to(device), labels.to(device), (0.5,) * 3, (0.25,) * 3)


def train(what: Learner, device: torch.device, *, recorded: bool, steps: int = STEPS) -> Steps:
    """The first `steps` steps, waiting for the device after each."""
    with tempfile.TemporaryDirectory() as folder:
        fitting = Fitting(
            what,
            images_of((steps + 1) * BATCH, device),  # more than are trained on: no epoch ends, nothing is scored
            SETTINGS,
            augmentation=Augmentation(),
            seed=0,
            checkpoint=Path(folder) / "checkpoint.pt",
            digest="gpu-steps",
            recorded=recorded,
        )
        milliseconds = []
        for _ in range(steps):
            began = time.perf_counter()
            fitting.advance()
            if device.type == "cuda":
                torch.cuda.synchronize()
            milliseconds.append((time.perf_counter() - began) * 1e3)
    return Steps(milliseconds, {name: value.cpu() for name, value in what.product.state_dict().items()})


def table(found: list[Json]) -> str:
    """The rows, for a terminal."""
    lines = [
        f"{'pair':<22} {'method':<9} {'launched ms':>11} {'recorded ms':>11} {'ratio':>6}  weights after {STEPS} steps"
    ]
    for row in found:
        launched, recorded = row["launched_ms"], row["recorded_ms"]
        times = f"{launched:>11.2f} {recorded:>11.2f} {launched / recorded:>6.1f}"
        lines.append(f"{row['pair']:<22} {row['method']:<9} {times}  {row['difference']}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
