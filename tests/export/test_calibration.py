"""Which images calibrate, and what range each method finds: against values that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from afpkd.errors import UserError
from export.calibration import calibration_images, ranges_of, tied_ranges
from export.quantize import OP_TYPES, Int8, layers, quantized, with_qdq
from export.verify import graph_forward

if TYPE_CHECKING:
    from export.calibration import Method

Floats = NDArray[np.float32]


def test_calibration_images_are_distinct_seeded_and_named() -> None:
    train = np.arange(1000, dtype=np.uint8).repeat(12).reshape(1000, 3, 2, 2)
    first, again, other = (calibration_images(train, seed) for seed in (0, 0, 1))
    assert first.ids == again.ids != other.ids
    assert len(set(first.ids)) == 512
    np.testing.assert_array_equal(first.images, train[first.ids])
    assert first.facts()["sha256"] == again.facts()["sha256"] != other.facts()["sha256"]
    with pytest.raises(UserError, match="calibration takes 512 images, the training set has 100"):
        calibration_images(train[:100], 0)


def test_layers_are_judged_on_images_of_the_whole_set(
    graph: onnx.ModelProto, inputs: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that calibrate keep the order of the set, which may lie class by class."""
    made, judged = quantized(graph, inputs, Int8()), list[Floats]()
    monkeypatch.setattr("export.quantize.sensitivity", lambda proto, ranges, images: judged.append(images))
    made.sensitivity()
    np.testing.assert_array_equal(judged[0], inputs[::4])


def one_layer() -> onnx.ModelProto:
    """Conv (1x1, weight 2) and ReLU: every tensor's values are known."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["c"], name="conv"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("Conv", ["r", "w2"], ["logits"], name="conv2"),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [
            numpy_helper.from_array(np.full((1, 1, 1, 1), 2, np.float32), "w"),
            numpy_helper.from_array(np.full((1, 1, 1, 1), 0.5, np.float32), "w2"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_ranges_are_the_values_the_tensors_take() -> None:
    images = np.random.default_rng(0).normal(size=(300, 1, 8, 8)).astype(np.float32)
    images[0, 0, 0, 0] = 40.0  # one value of 19,200
    extremes = ranges_of(one_layer(), images, OP_TYPES, "minmax")
    assert extremes["input"] == pytest.approx((images.min(), 40.0))
    assert extremes["c"] == pytest.approx((2 * images.min(), 80.0))
    assert extremes["r"] == pytest.approx((0.0, 80.0))
    most = ranges_of(one_layer(), images, OP_TYPES, "percentile")
    high = np.quantile(np.abs(images), 0.9999)
    assert most["input"] == pytest.approx((-high, high), abs=2 * 80 / 2048)  # two of its bins
    assert high < 5


def test_the_range_of_least_error_is_the_one_a_search_finds() -> None:
    images = np.random.default_rng(0).normal(size=(300, 1, 8, 8)).astype(np.float32)
    images[0, 0, 0, 0] = 12.0

    def error(threshold: float) -> float:
        step = threshold / 127
        return float(((images - np.clip(np.rint(images / step), -127, 127) * step) ** 2).sum())

    low, high = ranges_of(one_layer(), images, OP_TYPES, "mse")["input"]
    assert low == -high
    best = min(error(threshold) for threshold in np.linspace(1, 12, 200))
    assert error(high) < 1.03 * best < 0.95 * error(12.0)
    assert high < 11.5


def test_a_tensor_of_zeros_has_a_range() -> None:
    ranges = ranges_of(one_layer(), np.zeros((64, 1, 8, 8), np.float32), OP_TYPES, "mse")
    proto = with_qdq(one_layer(), ranges)
    assert not graph_forward(proto)(np.zeros((1, 1, 8, 8), np.float32)).any()


def test_what_a_relu_cuts_away_costs_no_precision() -> None:
    proto = one_layer()
    ranges = {"input": (-3.0, 3.0), "c": (-6.0, 6.5), "r": (0.0, 5.0), "logits": (0.0, 2.5)}
    assert tied_ranges(proto, ranges) == {**ranges, "c": (0.0, 5.0)}
    proto.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, None))
    assert tied_ranges(proto, ranges) == ranges, "somebody else reads it too"


@pytest.mark.parametrize(
    ("least", "most", "range_"), [(-1.0, 1.0, (-1.0, -0.3)), (0.0, 6.0, (0.0, 0.0)), (None, None, (-9.0, -0.3))]
)
@pytest.mark.parametrize("as_operators", [False, True])
def test_what_a_clip_lets_through_keeps_its_range(
    least: float | None, most: float | None, range_: tuple[float, float], *, as_operators: bool
) -> None:
    """ReLU6, and Hardtanh, whose lower end is no zero."""
    ends = [
        numpy_helper.from_array(np.array(end, np.float32), name)
        for end, name in ((least, "l"), (most, "m"))
        if end is not None
    ]
    constants = [helper.make_node("Constant", [], [end.name], value=end) for end in ends if as_operators]
    clip = helper.make_node("Clip", ["x", *(end.name for end in ends)], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    graph = helper.make_graph([*constants, clip], "g", [x], [y], [] if as_operators else ends)
    assert tied_ranges(helper.make_model(graph), {"x": (-9.0, -0.3)}) == {"x": range_}


@pytest.mark.parametrize("method", ["mse", "percentile", "minmax", "entropy"])
def test_every_method_calibrates(method: Method, graph: onnx.ModelProto, inputs: Floats) -> None:
    ranges = ranges_of(graph, inputs, OP_TYPES, method)
    assert {node.input[0] for node in layers(graph)} <= ranges.keys()
    assert all(low <= high and high > 0 for low, high in ranges.values())


def test_calibration_says_nothing_on_stdout(
    graph: onnx.ModelProto, inputs: Floats, capfd: pytest.CaptureFixture[str]
) -> None:
    ranges_of(graph, inputs, OP_TYPES, "percentile")
    assert capfd.readouterr().out == ""
