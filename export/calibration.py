"""Which training images calibrate int8, and the range of values each tensor takes on them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

from afpkd.errors import UserError
from afpkd.record import Json
from export.graph_shapes import tensors_of
from export.passes import images_a_pass

NUM_IMAGES = 512
PERCENTILE = 99.99

Method = Literal["mse", "percentile", "minmax", "entropy"]
Ranges = dict[str, tuple[float, float]]
"""Tensor -> its smallest and largest value worth representing."""

_METHODS: dict[str, tuple[CalibrationMethod, Json]] = {
    # The default: best where int8 costs most (ResNet-56: 22.3 dB, others 19.8 to 22.1), 1 to 3 dB behind extremes on
    # ResNet-8 and -20, where nothing hangs on it (bench/results/quantizers.jsonl).
    "mse": (CalibrationMethod.Percentile, {}),  # whose histograms it reads
    "percentile": (CalibrationMethod.Percentile, {"percentile": PERCENTILE}),
    "minmax": (CalibrationMethod.MinMax, {}),
    "entropy": (CalibrationMethod.Entropy, {}),
}
_BATCH = 64
MOST_KEPT_BYTES = 2 << 30
"""Of the tensors that a histogram needs of one pass: 64 images of 32x32 in a ResNet-50 keep 1.6 GB."""
_STEPS, _FINEST = 64, 8  # thresholds tried: parts of the largest value, from an eighth to all of it


class Calibration(NamedTuple):
    """Images uint8 N, C, H, W of the training set, and their numbers there."""

    images: NDArray[np.uint8]
    ids: list[int]
    source: str = "train"
    warning: str | None = None
    """What speaks against them."""

    def facts(self) -> Json:
        """Which images they are: their numbers in the training set, and the hash of their pixels."""
        pixels = hashlib.sha256(np.ascontiguousarray(self.images).tobytes()).hexdigest()
        return {"source": self.source, "warning": self.warning, "num": len(self.ids), "ids": self.ids, "sha256": pixels}


def calibration_images(train: NDArray[np.uint8], seed: int, num: int = NUM_IMAGES) -> Calibration:
    """Draw `num` distinct images of the training set, seeded, in the order of the set; UserError where it has fewer."""
    if len(train) < num:
        raise UserError(
            "E_DATA_LITTLE", f"calibration takes {num} images, the training set has {len(train)}: leave int8 out"
        )
    drawn = np.random.Generator(np.random.PCG64(seed)).choice(len(train), size=num, replace=False)
    ids = np.sort(drawn)
    return Calibration(train[ids], [int(index) for index in ids])


def ranges_of(
    proto: onnx.ModelProto, inputs: NDArray[np.float32], op_types: Sequence[str], method: Method = "mse"
) -> Ranges:
    """Run `inputs` (float32 N, C, H, W, preprocessed) through the float graph, and give the range of each tensor that
    enters or leaves an operator of `op_types`.

    mse: the range whose int8 grid leaves the least squared error; percentile: 0.005 % of the values lie beyond each
    end; minmax: the extremes; entropy: the threshold of least Kullback-Leibler divergence. UserError where a tensor
    hardly varies, so that no histogram can be made.
    """
    kind, options = _METHODS[method]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        path = Path(folder) / "float.onnx"
        onnx.save(proto, path)
        calibrator = create_calibrator(
            path,
            list(op_types),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kind,
            extra_options=options,
        )
        name = proto.graph.input[0].name
        size = images_a_pass(inputs.shape[-2:], _BATCH)
        if kind is not CalibrationMethod.MinMax:  # whose graph keeps the extremes alone
            size = min(size, max(1, MOST_KEPT_BYTES // max(1, kept_bytes(proto, inputs.shape[1:], op_types))))
        for start in range(0, len(inputs), size):  # pass by pass: all intermediate maps at once fill gigabytes
            try:
                calibrator.collect_data(_Reader(name, inputs[start : start + size]))
            except ValueError as error:  # numpy's, of a tensor whose values are all but equal
                raise UserError(
                    "E_EXPORT_SETTING", f"export.calibration = '{method}': no histogram ({error}): use 'minmax'"
                ) from None
        if method == "mse":
            histograms = calibrator.collector.histogram_dict
            return {tensor: _least_error(counts, edges) for tensor, (counts, edges, *_) in histograms.items()}
        found = calibrator.compute_data()
    return {tensor: _floats(data.range_value) for tensor, data in found.items()}


def kept_bytes(proto: onnx.ModelProto, image_shape: Sequence[int], op_types: Sequence[str]) -> int:
    """Bytes of all tensors that enter or leave an operator of `op_types`, for one image (C, H, W)."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type in op_types]
    names = {name for node in nodes for name in (*node.input, *node.output)} - weights
    return sum(facts.num_bytes or 0 for name, facts in tensors_of(proto, image_shape).items() if name in names)


def _least_error(counts: NDArray[np.int64], edges: NDArray[np.float32]) -> tuple[float, float]:
    """The symmetric range for a tensor of this histogram: sum of counts * (value - rounded and clipped value)^2."""
    values = (edges[:-1].astype(np.float64) + edges[1:]) / 2
    seen = np.abs(values[counts > 0]).max(initial=0.0)
    if not seen:
        return 0.0, 0.0
    thresholds = seen * np.arange(_FINEST, _STEPS + 1) / _STEPS
    scales = thresholds[:, None] / 127
    errors = (counts * (values - np.clip(np.rint(values / scales), -127, 127) * scales) ** 2).sum(axis=1)
    best = float(thresholds[errors.argmin()])
    return -best, best


def tied_ranges(proto: onnx.ModelProto, ranges: Ranges) -> Ranges:
    """Give what enters an activation alone the range of what leaves it.

    ONNX Runtime computes a convolution in int8 only where its own output is quantised, before the ReLU; the negative
    half that the ReLU cuts away shall cost no precision. Quantised again on the same grid behind the ReLU, the values
    stay what they are: so the second Q/DQ pair, which the next convolution needs, rounds nothing.
    """
    consumers = Counter(name for node in proto.graph.node for name in node.input)
    consumers.update(value.name for value in proto.graph.output)
    tied = dict(ranges)
    for node in proto.graph.node:
        if node.op_type in ("Relu", "Clip") and consumers[node.input[0]] == 1 and node.input[0] in ranges:
            least, most = (0.0, np.inf) if node.op_type == "Relu" else _bounds(node, proto.graph)
            low, high = (min(max(end, least), most) for end in ranges[node.input[0]])
            tied[node.input[0]] = ranges.get(node.output[0], (low, high))
    return tied


def _bounds(clip: onnx.NodeProto, graph: onnx.GraphProto) -> tuple[float, float]:
    """What a Clip cuts to, as far as the graph says it: ReLU6 0 and 6, Hardtanh -1 and 1."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    written = ((node.output[0], entry) for node in graph.node if node.op_type == "Constant" for entry in node.attribute)
    constants |= {name: entry.t for name, entry in written if entry.name == "value"}
    ends = [constants.get(name) for name in (*clip.input[1:], "", "")[:2]]
    least, most = (None if end is None else float(numpy_helper.to_array(end)) for end in ends)
    return -np.inf if least is None else least, np.inf if most is None else most


def _floats(pair: tuple[Any, Any]) -> tuple[float, float]:
    low, high = (float(np.asarray(value).reshape(-1)[0]) for value in pair)
    return low, high


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, name: str, images: NDArray[np.float32]) -> None:
        self._batches: Iterator[Json] = iter([{name: images}])

    def get_next(self) -> Json | None:
        return next(self._batches, None)
