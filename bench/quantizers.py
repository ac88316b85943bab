"""ONNX Runtime's quantiser against NVIDIA Model-Optimizer: accuracy, and what TensorRT-RTX makes of their files.

`python -m bench.quantizers RUN/student …`: each role of a run; without a name the public CIFAR-100 ResNet-56. The
choice is made on training images that did not calibrate; test accuracy stands beside it. Model-Optimizer where it is
installed.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from afpkd.checkpoint import load_weights
from afpkd.data import DATASETS
from afpkd.data.dataset import Dataset, data_root
from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.record import Json, provenance, read_record
from bench.command import run
from bench.rows import append, read
from deploy.build_check import build_check
from export.bundle import preprocess
from export.calibration import calibration_images
from export.half import OPSET_OF_HALF_QUANTIZATION
from export.quantize import Int8, Quantized, quantized
from export.to_onnx import OPSET, graph_from_model
from export.verify import Forward, Logits, compare, graph_forward, top1
from pipeline.networks import recorded_network
from pipeline.recipe_reader import load_recipe

NUM_JUDGED = 2000
NUM_TESTED = 2000
"""Of the test set, the first: a float16 remainder is slow on a CPU, and no choice rests on it."""
SETTINGS = (
    Int8("onnxruntime", "mse"),
    Int8("onnxruntime", "percentile"),
    Int8("onnxruntime", "minmax"),
    Int8("onnxruntime", "entropy"),
    Int8("modelopt", "minmax"),
    Int8("modelopt", "entropy"),
)


class Network(NamedTuple):
    """A trained network, its data, and how pixels become its input."""

    name: str
    graph: onnx.ModelProto
    data: Dataset
    rule: Json

    def inputs(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Preprocess pixels."""
        return preprocess(images, self.rule)

    def logits(self, forward: Forward, images: NDArray[np.uint8]) -> Logits:
        """Run pixels through, 250 at a time."""
        return np.concatenate([forward(self.inputs(images[i : i + 250])) for i in range(0, len(images), 250)])


def main(folders: Sequence[str] = ()) -> None:
    """Quantise each network in every way, append rows to results/quantizers.jsonl, print the table."""
    for network in map(_of_role, map(Path, folders)) if folders else iter([_public()]):
        for row in _rows(network):
            append("quantizers", [row])
            sys.stderr.write(f"{row['network']} {row['quantizer']} {row['method']} {row['remainder']}\n")
    sys.stdout.write(table(read("quantizers")))


def table(rows: list[Json]) -> str:
    """Markdown, a file a line: SQNR and agreement on training images that did not calibrate, test accuracy, layers."""
    lines = [
        "| network | quantiser | ranges | rest | SQNR, dB | agreement | top-1 | Q nodes | int8 | fp16 | fp32 layers |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        layers = row["rtx"].get("layer_types", {})
        counts = " | ".join(str(layers.get(kind, 0)) for kind in ("int8", "fp16", "fp32")) if layers else "- | - | -"
        lines.append(
            f"| {row['network']} | {row['quantizer']} | {row['method']} | {row['remainder']} | {row['sqnr_db']:.1f} "
            f"| {row['argmax_agreement']:.2f} % | {row['test_top1']:.2f} ({row['test_top1'] - row['float_top1']:+.2f}) "
            f"| {row['num_q']} | {counts} |"
        )
    return "\n".join(lines) + "\n"


def _rows(network: Network) -> Iterator[Json]:
    train = network.data.train
    images, labels = network.data.test.images[:NUM_TESTED], network.data.test.labels[:NUM_TESTED]
    calibration = calibration_images(train.images, seed=0)
    others = np.setdiff1d(np.arange(len(train.labels)), calibration.ids)
    judged = train.images[np.random.default_rng(1).choice(others, NUM_JUDGED, replace=False)]
    reference = network.logits(graph_forward(network.graph), judged)
    float_top1 = top1(network.logits(graph_forward(network.graph), images), labels)
    installed = importlib.util.find_spec("modelopt") is not None
    for settings in SETTINGS if installed else [found for found in SETTINGS if found.quantizer != "modelopt"]:
        started = time.perf_counter()
        made = quantized(network.graph, network.inputs(calibration.images), settings)
        seconds = time.perf_counter() - started
        for remainder, proto in _files(made):
            forward = graph_forward(proto, as_written=remainder == "fp16")
            found = compare(reference, network.logits(forward, judged))
            yield {
                "network": network.name,
                "quantizer": settings.quantizer,
                "method": settings.method,
                "remainder": remainder,
                **{key: found[key] for key in ("sqnr_db", "argmax_agreement", "max_abs_error")},
                "float_top1": float_top1,
                "test_top1": top1(network.logits(forward, images), labels),
                "num_test": len(labels),
                "num_q": sum(node.op_type == "QuantizeLinear" for node in proto.graph.node),
                "rtx": rtx_layers(proto),
                "seconds": round(seconds, 1),
                **{key: provenance()[key] for key in ("versions", "git_commit")},
            }


def _files(made: Quantized) -> Iterator[tuple[str, onnx.ModelProto]]:
    yield "fp32", made.full
    yield "fp16", made.half(OPSET_OF_HALF_QUANTIZATION)


def rtx_layers(proto: onnx.ModelProto) -> Json:
    """What TensorRT-RTX builds of the file for SM 8.9: {"status": ..., "layer_types": {type read: layers}, ...}."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        report = build_check(path, "int8", capabilities=("8.9",))
    kept = {key: report[key] for key in ("status", "reason", "engine_bytes", "build_seconds")}
    return {**kept, "layer_types": (report["layer_types"] or {}).get("by_type", {})}


def _of_role(folder: Path) -> Network:
    record = read_record(folder / "record.json")
    model = recorded_network(record)
    load_weights(model, folder / "model.safetensors")
    return _network(f"{record['arch']}, {record['data']}", model, record["data"], record["preprocessing"])


def _public() -> Network:
    recipe = load_recipe("cifar100-resnet56-resnet20-cpu")[1]
    weights = data_root() / getattr(recipe.teacher, "weights", "")
    if not weights.is_file():
        raise UserError("E_WEIGHTS_MISSING", f"{weights}: the public ResNet-56 is not there: name a run's role instead")
    model = build_model(recipe.teacher.arch, num_classes=100, in_channels=3)
    load_weights(model, weights)
    name = f"{recipe.teacher.arch}, {recipe.data.name}"
    return _network(name, model, recipe.data.name, {"mean": recipe.data.mean, "std": recipe.data.std})


def _network(name: str, model: torch.nn.Module, data: str, normalisation: Json) -> Network:
    spec = DATASETS[data]
    example = torch.zeros(1, spec.in_channels, *spec.image_size)
    rule = {"layout": "NCHW", "scale": 1 / 255, **{key: list(normalisation[key]) for key in ("mean", "std")}}
    return Network(name, graph_from_model(model, example, opset=OPSET), spec.load(data_root()), rule)


if __name__ == "__main__":
    run(main)
