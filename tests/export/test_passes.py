"""Passes: as many small images as ever, fewer large ones; what calibration and a detector keep is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from afpkd import evaluate
from export import calibration
from export.calibration import kept_bytes, ranges_of
from export.passes import MOST_PIXELS, outputs_of, outputs_of_preprocessed
from export.quantize import OP_TYPES
from export.verify import compare, golden_tolerances
from pipeline.evaluation import evaluate_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from export.calibration import Method

Floats = NDArray[np.float32]
RULE = {"layout": "NCHW", "scale": 1 / 255, "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(("side", "num"), [(32, 250), (64, 250), (224, 21), (512, 4), (1024, 1), (4096, 1)], ids=str)
def test_a_pass_takes_fewer_images_the_larger_they_are(side: int, num: int) -> None:
    seen: list[int] = []

    def forward(images: Floats) -> Floats:
        seen.append(len(images))
        return images[:, :, 0, 0]

    images = np.zeros((300 if side < 512 else 5, 1, side, side), np.uint8)
    whole = outputs_of(forward, images, RULE)
    assert max(seen) == min(num, len(images))
    assert sum(seen) == len(images) == len(whole)
    del seen[:]
    outputs_of_preprocessed(forward, images[:300].astype(np.float32))
    assert max(seen) == min(num, len(images))
    assert MOST_PIXELS == evaluate.MOST_PIXELS


def test_answers_kept_on_disk_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (600, 1, 4, 4), dtype=np.uint8)
    found = outputs_of(lambda batch: batch * 3, images, RULE, on_disk=True)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, outputs_of(lambda batch: batch * 3, images, RULE))
    assert not list(tmp_path.iterdir())


def test_raw_outputs_are_compared_some_at_a_time_as_if_at_once() -> None:
    """As the formulas say it over all, in float64."""
    rng = np.random.default_rng(0)
    want = rng.normal(size=(50, 6, 7)).astype(np.float32)
    got = want + rng.normal(size=want.shape).astype(np.float32) * np.float32(0.01)
    found = compare(want, got)
    ours, theirs = (raw[..., 4:].reshape(50, -1).astype(np.float64) for raw in (want, got))
    assert found["max_abs_error"] == np.abs(ours - theirs).max()
    assert found["sqnr_db"] == pytest.approx(10 * np.log10((ours**2).sum() / ((ours - theirs) ** 2).sum()), rel=1e-12)
    assert found["argmax_agreement"] == 100 * (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
    got[49, 0, 5] = np.inf
    assert compare(want, got) | {"argmax_agreement": 0} == {
        **dict.fromkeys(("max_abs_error", "max_rel_error", "sqnr_db", "cosine")),
        **{"argmax_agreement": 0, "num_not_finite": 1, "num": 50},
    }
    assert golden_tolerances("fp32", want)["max_abs"] == pytest.approx(1e-3 * np.abs(want).max())


@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_a_pass_of_calibration_keeps_no_more_than_it_may(
    method: Method, graph: onnx.ModelProto, inputs: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    reader = calibration._Reader

    def counted(name: str, images: Floats) -> Any:
        read.append(len(images))
        return reader(name, images)

    monkeypatch.setattr(calibration, "_Reader", counted)
    before = ranges_of(graph, inputs, OP_TYPES, method)
    assert read == [64, 64]
    one = kept_bytes(graph, (3, 16, 16), OP_TYPES)
    monkeypatch.setattr(calibration, "MOST_KEPT_BYTES", 10 * one + 1)
    del read[:]
    after = ranges_of(graph, inputs, OP_TYPES, method)
    assert read == ([10] * 12 + [8] if method == "mse" else [64, 64]), "of the extremes nothing is kept"
    assert {name: pytest.approx(pair, rel=0.1) for name, pair in before.items()} == after
    del read[:]
    large = np.zeros((64, 3, 256, 256), np.float32)
    large[:, :, ::2] = 1
    ranges_of(graph_of_any_size(graph), large[:20], OP_TYPES, "minmax")
    assert read == [16, 4]


def graph_of_any_size(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Its first convolution alone."""
    first = next(node for node in graph.graph.node if node.op_type == "Conv")
    weights = [tensor for tensor in graph.graph.initializer if tensor.name in first.input]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", None, None, None])
        for name in ("input", first.output[0])
    ]
    made = onnx.helper.make_graph([first], "g", ends[:1], ends[1:], weights)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def test_what_is_kept_is_counted_from_the_graph(graph: onnx.ModelProto) -> None:
    """The first convolution alone: its input 3x16x16 and its output 16x16x16, four bytes each."""
    assert kept_bytes(graph_of_any_size(graph), (3, 16, 16), ["Conv"]) == 4 * 16 * 16 * (3 + 16)
    assert kept_bytes(graph, (3, 32, 32), OP_TYPES) > 3 * kept_bytes(graph, (3, 16, 16), OP_TYPES)


def test_a_bundle_is_scored_a_pass_at_a_time(
    tmp_path: Path, written: Callable[..., Any], images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "bundle", images)
    seen: list[int] = []

    def forward(batch: Floats) -> Floats:
        seen.append(len(batch))
        return np.eye(5, dtype=np.float32)[np.arange(len(batch)) % 5]

    monkeypatch.setattr("export.verify.onnx_forward", lambda _path: forward)
    monkeypatch.setattr("export.passes.MOST_PIXELS", 8 * 8 * 100)
    assert evaluate_path(tmp_path / "bundle", arch=None, data=None, recipe=None) == {"top1": 100.0, "n": 300}
    assert seen == [100, 100, 100]
