from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from afpkd.errors import UserError
from export.verify import (
    compare,
    file_tolerances,
    golden_tolerances,
    require_within,
    run_onnx,
    status_of,
    tied_images,
    top1,
)

Floats = NDArray[np.float32]


def logits(*rows: list[float]) -> Floats:
    return np.array(rows, dtype=np.float32)


def negating_onnx(path: Path) -> Path:
    """A file whose output is the negated input: numpy knows it without us."""
    shape: list[str | int | None] = ["batch", 3]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["input"], ["logits"])],
        "negate",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_compare_by_hand() -> None:
    found = compare(logits([3, 4], [0, 10]), logits([4, 3], [0, 8]))
    assert found == {
        "max_abs_error": 2.0,
        "max_rel_error": 0.25,  # 1 of 4 in the first image, 2 of 10 in the second
        "sqnr_db": pytest.approx(10 * np.log10(125 / 6)),
        "argmax_agreement": 50.0,
        "cosine": pytest.approx(24 / 25),
        "num_not_finite": 0,
        "num": 2,
    }


def test_compare_of_equals() -> None:
    reference = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    found = compare(reference, reference.copy())
    assert (found["max_abs_error"], found["max_rel_error"], found["argmax_agreement"]) == (0, 0, 100)
    assert found["cosine"] == pytest.approx(1, abs=1e-12)


def test_the_worst_image_gives_the_cosine() -> None:
    found = compare(logits([1, 0], [1, 0], [1, 0]), logits([1, 0], [0, 1], [1, 0]))
    assert found["cosine"] == 0


def test_all_zero_logits_are_no_agreement() -> None:
    assert compare(logits([1, 2]), logits([0, 0]))["cosine"] == 0
    assert compare(logits([0, 0]), logits([0, 0]))["max_rel_error"] == 0


@pytest.mark.parametrize("at", [0, 5])
def test_of_a_detector_a_box_that_is_no_number_counts_as_a_score_does(at: int) -> None:
    """N, A, 4 + K."""
    raw = np.ones((3, 2, 6), dtype=np.float32)
    broken = raw.copy()
    broken[1, 0, at] = np.inf
    assert compare(raw, raw)["num_not_finite"] == 0
    assert compare(raw, broken)["num_not_finite"] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_is_refused(bad: float) -> None:
    found = compare(logits([1, 2], [2, 1]), logits([1, bad], [2, 1]))
    assert (found["num_not_finite"], found["argmax_agreement"]) == (1, 50.0)
    assert found["max_abs_error"] is found["cosine"] is found["sqnr_db"] is None
    with pytest.raises(UserError, match=r"a\.onnx: its logits hold NaN"):
        require_within(found, golden_tolerances("fp32", logits([1, 2])), "a.onnx")
    with pytest.raises(UserError, match="the network's logits hold NaN"):
        compare(logits([1, bad]), logits([1, 2]))


def test_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(1, 2\), expected \(2, 2\)"):
        compare(logits([1, 2], [3, 4]), logits([1, 2]))


def test_fp32_tolerances_are_those_of_the_contract() -> None:
    assert golden_tolerances("fp32", logits([1, -20], [3, 4])) == {
        "max_abs": pytest.approx(0.02),
        "cosine": 0.99999,
        "argmax_agreement": 100.0,
    }


def test_what_meets_the_tolerances_passes() -> None:
    reference = logits([10, -20, 3], [5, 1, 2])
    require_within(compare(reference, reference + np.float32(0.015)), golden_tolerances("fp32", reference), "a.onnx")


@pytest.mark.parametrize(
    ("candidate", "failing"),
    [
        (logits([10, -20.03, 3], [5, 1, 2]), ["max_abs_error 0.03"]),
        (logits([10, -20, 3], [5, 1.019, 2.019]), ["cosine 0.99998981 (at least 0.99999)"]),
        (
            logits([10, -20, 3], [1, 5, 2]),
            ["argmax_agreement 50 (at least 100)", "cosine", "max_abs_error 4 (at most 0.02)"],
        ),
    ],
)
def test_what_misses_a_tolerance_is_named(candidate: Floats, failing: list[str]) -> None:
    reference = logits([10, -20, 3], [5, 1, 2])
    with pytest.raises(UserError, match=r"^student, fp32\.onnx: does not compute what torch computes") as caught:
        require_within(compare(reference, candidate), golden_tolerances("fp32", reference), "student, fp32.onnx")
    named = [name for name in ("argmax_agreement", "cosine", "max_abs_error") if name in str(caught.value)]
    assert len(named) == len(failing)
    assert all(text in str(caught.value) for text in failing)


def test_a_tie_is_reported_and_another_class_is_refused() -> None:
    reference = logits([1, 5, 0], [5, 5.00002, 1], [7, 1, 0])
    tied = logits([1, 5, 0], [5.00002, 5, 1], [7, 1, 0])
    assert tied_images(reference, reference, "a.onnx") == []
    assert tied_images(reference, tied, "a.onnx") == [1]
    wrong = logits([1, 5, 0], [5.00002, 5, 1], [0, 1, 7])
    with pytest.raises(UserError, match=r"a\.onnx: 1 of 3 images .* the first is number 2 \(class 0 became 2\)"):
        tied_images(reference, wrong, "a.onnx")


def test_a_small_but_true_margin_is_no_tie() -> None:
    with pytest.raises(UserError, match="1 of 1 images"):
        tied_images(logits([5, 5.001]), logits([5.001, 5]), "a.onnx")


@pytest.mark.parametrize("batch_size", [1, 4, 10, 99])
def test_batches_are_put_together_in_order(batch_size: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(negating_onnx(tmp_path / "n.onnx"), images, batch_size), -images)


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"junk\.onnx: onnxruntime .* cannot load it") as caught:
        run_onnx(tmp_path / "junk.onnx", np.zeros((1, 3), np.float32))
    assert "\n" not in str(caught.value)


def test_top1_is_percent() -> None:
    scores = logits([1, 0], [0, 1], [1, 0], [1, 0])
    assert top1(scores, np.array([0, 1, 1, 0])) == 75.0


def test_a_device_may_stray_twice_as_far_as_the_file_does_here() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(64, 10)).astype(np.float32)
    broad = golden_tolerances("int8", reference)
    assert broad["max_abs"] == pytest.approx(0.05 * np.abs(reference).max())
    good = compare(reference, reference + np.float32(0.01))
    assert file_tolerances(broad, good) == broad, "a good file is held to its precision's"
    coarse = compare(reference, (reference + rng.normal(scale=0.3, size=reference.shape)).astype(np.float32))
    own = file_tolerances(broad, coarse)
    assert own["max_abs"] == pytest.approx(2 * coarse["max_abs_error"])
    assert 1 - own["cosine"] == pytest.approx(2 * (1 - coarse["cosine"]))
    assert own["argmax_agreement"] == pytest.approx(coarse["argmax_agreement"] - 4)
    saturated = compare(reference, rng.permuted(reference, axis=1))
    assert saturated["cosine"] < own["cosine"], "what another network would answer still fails"
    broken = compare(reference, np.full_like(reference, np.nan))
    assert file_tolerances(broad, broken) == broad


def test_a_budget_is_points_of_top1_against_torch() -> None:
    fine = compare(logits([1, 2]), logits([1, 2]))
    within = status_of(fine, 79.0, 80.0, 1.0, "int8")
    assert within == {"top1": 79.0, "drop": 1.0, "max_drop": 1.0, "status": "ok", "reason": None}
    beyond = status_of(fine, 78.5, 80.0, 1.0, "int8")
    assert (beyond["status"], beyond["drop"]) == ("over budget", 1.5)
    assert beyond["reason"] == "int8 loses 1.50 points of top-1 against float32 (80.00 %), more than 1"
    assert status_of(fine, 82.0, 80.0, 0.0, "fp16")["status"] == "ok", "a gain is no loss"
    broken = compare(logits([1, 2]), logits([1, np.inf]))
    assert status_of(broken, 80.0, 80.0, 1.0, "fp16")["reason"] == "fp16 gives NaN or infinity for 1 of 1 images"
    assert status_of(fine, 80.0, 80.0, 1.0, "fp16", "x reaches 7e4")["reason"] == "fp16: x reaches 7e4"
