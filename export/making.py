"""From a network to its bundle, whatever its task: files planned, made, checked and written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from afpkd.errors import UserError
from afpkd.names import in_words
from afpkd.record import Json
from export.bundle import Evaluation, Golden, ModelFile, preprocess, require_place, write_bundle
from export.calibration import Calibration
from export.cost import macs_of
from export.files import PRECISIONS, GraphOf, Maker, Planned, planned_files
from export.inference import LogitsOnly, logits_only
from export.quantize import Int8
from export.to_onnx import graph_from_model, save_graph
from export.verify import Forward, Logits

BuildCheck = Callable[[Path, str], Json]
"""(file, precision) -> what NVIDIA's parser and builder say of it: `status`, `build_seconds`, `layer_types`, ..."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a bundle shall be; the same for every task."""

    role: str
    arch: str
    mean: Sequence[float]
    std: Sequence[float]
    precisions: Sequence[str]
    opset: int
    lineage: Json
    out: Path
    calibration: Calibration | None = None
    """For int8."""
    int8: Int8 = field(default_factory=Int8)
    legacy: bool = False
    """Files for TensorRT 8.5 and 8.6, too."""
    max_drop: float = 1.0
    """Points that a file of another precision than fp32 may lose; beyond, it is listed as over budget."""
    build_check: BuildCheck | None = None
    say: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        """Refuse a place where something else lies before anything is made."""
        require_place(self.out)

    @property
    def name(self) -> str:
        """Who, for messages."""
        return f"{self.role} ({self.arch})"

    @property
    def rule(self) -> Json:
        """The manifest's `preprocessing`."""
        return {"layout": "NCHW", "scale": 1 / 255, "mean": list(self.mean), "std": list(self.std)}

    def require_sense(self, reference: Logits) -> None:
        """UserError where it cannot be met, or where the network (its answers: `reference`) is broken."""
        unknown = [precision for precision in self.precisions if precision not in PRECISIONS]
        if unknown:
            known = ", ".join(PRECISIONS)
            raise UserError(
                "E_EXPORT_SETTING", f"{self.name}: precision {unknown[0]!r} cannot be exported: known are {known}"
            )
        if "int8" in self.precisions and self.calibration is None:
            raise UserError(
                "E_EXPORT_SETTING", f"{self.name}: int8 needs calibration images: give some of the training set"
            )
        if not all(np.isfinite(answer).all() for answer in reference):
            raise UserError("E_WEIGHTS_NAN", f"{self.name}: its output holds NaN or infinity: train it again")


class Source(NamedTuple):
    """A network as it is exported: what it computes, as which graph, at what cost."""

    forward: Forward
    """The reference that each file is held against: float32."""
    graph_of: GraphOf
    cost: Json
    """The keys of `cost.macs_of`."""


def source_from_model(model: nn.Module, image_shape: Sequence[int]) -> Source:
    """A torch network (it returns `Outputs`, or logits alone) that sees images of `image_shape` (C, H, W)."""
    example = torch.zeros(1, *image_shape)
    return Source(
        torch_forward(logits_only(model)),
        lambda opset: graph_from_model(model, example, opset=opset),
        macs_of(model, example),
    )


class Checker(Protocol):
    """What a task knows: how far a file may stray from the float32 network, and how good it still is."""

    reference: Logits
    """What float32 torch answers to every test image."""
    chosen: NDArray[np.int64]
    """The golden images among them."""

    def tolerances(self, precisions: Sequence[str]) -> dict[str, Json]:
        """Golden tolerances by precision."""

    def check(self, file: Planned, path: Path, overflow: str | None) -> Json:
        """What the manifest says of a file, `tolerances` among it; UserError where it may not be written."""


def make_bundle(
    order: Order, source: Source, checker: Checker, *, rule: Json, facts: Json, evaluation: Evaluation
) -> Json:
    """Make every file, have each checked, write the bundle; give the manifest. facts: what the task adds to it.

    UserError where a file may not be written: then nothing is, and a bundle that stands at `order.out` stays.
    """
    images, calibration = evaluation.images, order.calibration if "int8" in order.precisions else None
    inputs = preprocess(calibration.images, rule) if calibration else None
    maker = Maker(source.graph_of, order.opset, inputs, order.int8)
    golden = images[checker.chosen]
    halves = set(order.precisions) != {"fp32"}
    overflow = maker.overflow(preprocess(golden, rule)) if halves else None
    with tempfile.TemporaryDirectory() as scratch:
        files, found = _made_files(order, maker, checker, Path(scratch), overflow)
        return write_bundle(
            order.out,
            facts={
                "role": order.role,
                "arch": order.arch,
                "num_params": source.cost["num_params"],
                "macs": {key: value for key, value in source.cost.items() if key != "num_params"},
                "preprocessing": rule,
                "activations": maker.activations(images.shape[1:]),
                **found,
                "sensitivity": maker.sensitivity(),
                **facts,
                "lineage": {**order.lineage, "calibration": _calibrated(calibration, order.int8)},
            },
            files=files,
            golden=Golden(golden, checker.reference[checker.chosen], checker.tolerances(order.precisions)),
            evaluation=evaluation,
        )


def _made_files(
    order: Order, maker: Maker, checker: Checker, folder: Path, overflow: str | None
) -> tuple[list[ModelFile], Json]:
    """Make and check each planned file in `folder`: the manifest's entries, and what it says of the files by name."""
    files: list[ModelFile] = []
    verification, builds = {}, {}
    for file in planned_files(order.precisions, order.opset, legacy=order.legacy, quantizer=order.int8.quantizer):
        path = folder / file.name
        save_graph(maker.graph(file), path, opset=file.opset)
        verification[file.name] = facts = checker.check(file, path, overflow)
        metric = "ap" if "ap" in facts else "top1"
        order.say(f"{file.name}: {in_words(metric)} {facts[metric]:.2f} %, {facts['status']}{_after(facts['reason'])}")
        builds[file.name] = _built(order.build_check, file, path)
        kept = {key: facts[key] for key in ("status", "reason")}
        entry = {**kept, "tolerances": facts.pop("tolerances")}
        files += [ModelFile(path, file.precision, file.opset, *run, entry) for run in file.runs]
    return files, {"verification": verification, "build_check": builds}


def _built(build_check: BuildCheck | None, file: Planned, path: Path) -> Json:
    """What NVIDIA's builder says of a file that is for it; status None: not checked, and why."""
    if all(run.runtime == "onnxruntime" for run in file.runs):
        return {"status": None, "reason": "not checked: the file is not for TensorRT"}
    if build_check is None:
        return {"status": None, "reason": "not checked: no builder was given"}
    return build_check(path, file.precision)


def _calibrated(calibration: Calibration | None, settings: Int8) -> Json | None:
    """What the manifest says of the calibration; None where nothing was calibrated."""
    if calibration is None:
        return None
    return {
        **calibration.facts(),
        "method": settings.method,
        "quantizer": settings.quantizer,
        "exclude": list(settings.exclude),
    }


def _after(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def torch_forward(network: LogitsOnly) -> Forward:
    """The reference: float32 torch on the CPU."""

    def forward(images: NDArray[np.float32]) -> Logits:
        with torch.inference_mode():
            logits: Logits = network(torch.from_numpy(images)).numpy()
        return logits

    return forward
