"""Any ONNX file: its inputs, its answers, its record; the mistakes of who asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from afpkd.errors import UserError
from deploy.agent import PROTOCOL
from deploy.agent.any_file import measure_file as measure_here
from deploy.agent.errors import AgentError
from deploy.measure_file import feeds_for, measure_file
from pipeline.cli import app
from pipeline.cli_measure import text_of
from pipeline.record_keys import PROFILE
from tests.deploy.conftest import HandMadeBundle
from tests.deploy.fakes import Install
from tests.deploy.test_measure import HEADLINE
from tests.record_tables import missing, untold

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def two_inputs(folder: Path, length: Any = 6, *, apart: bool = True) -> Path:
    """ids (batch, length) of int64, mask (batch, length) of float -> their product's sum, and the ids as floats.

    apart: a sum an entry of the batch, not one of all.
    """
    nodes = [
        helper.make_node("Cast", ["ids"], ["floats"], to=FLOAT),
        helper.make_node("Mul", ["floats", "mask"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axes"] if apart else ["product"], ["sum"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [
            helper.make_tensor_value_info("ids", INT64, ["batch", length]),
            helper.make_tensor_value_info("mask", FLOAT, ["batch", length]),
        ],
        [
            helper.make_tensor_value_info("sum", FLOAT, ["batch" if apart else 1, 1]),
            helper.make_tensor_value_info("floats", FLOAT, ["batch", length]),
        ],
        [numpy_helper.from_array(np.array([1]), "axes")] if apart else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "two.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.usefixtures("instant")
def test_a_file_gets_the_record_of_a_profile(onnx_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    record = measure_file(onnx_path, device="local", preset="instant", threads=1, out=out, scenarios=["single_stream"])
    assert json.loads(out.read_text()) == record
    assert [set(row) for row in record["rows"]] == [HEADLINE]
    assert record["schema"] == "afpkd.profile/1"
    assert (record["role"], record["precision"], record["top1"], record["threads"]) == (None, None, None, 1)
    assert record["macs"] == record["num_params"] == 240
    assert record["latency_ms"]["p50_lo"] <= record["latency_ms"]["p50"] <= record["latency_ms"]["p50_hi"]
    assert record["golden"]["before"]["ok"]
    assert record["golden"]["after"]["ok"]
    assert record["timing"]["num_inputs"] == 64
    assert "random inputs: no real ones were given" in record["reasons"]
    with np.load(tmp_path / "record.npz") as arrays:
        assert len(arrays["samples_ns"]) == record["n"] == 200


@pytest.mark.usefixtures("instant")
def test_its_keys_are_those_of_a_profile(bundle: HandMadeBundle, onnx_path: Path, tmp_path: Path) -> None:
    from tests.deploy.test_measure import measured

    profile = measured(bundle, tmp_path / "a.json")
    record = measure_file(onnx_path, device="local", preset="instant", out=tmp_path / "b.json")
    assert set(profile) <= set(record)
    assert untold(record, PROFILE) == missing(record, PROFILE) == []
    assert set(profile["latency_ms"]) == set(record["latency_ms"])


@pytest.mark.usefixtures("instant")
def test_several_inputs_of_any_type_and_several_outputs(tmp_path: Path) -> None:
    model = two_inputs(tmp_path)
    scenarios = ("single_stream", "offline")
    record = measure_file(model, device="local", preset="instant", scenarios=scenarios)
    assert record["golden"]["before"]["ok"]
    assert [row["batch"] for row in record["rows"]] == [1, 1, 2, 4, 8, 16, 32]
    assert all(found["golden"]["ok"] for found in record["timing"]["offline"])


@pytest.mark.usefixtures("instant")
def test_calls_whose_answers_cannot_be_told_apart_are_not_timed_together(tmp_path: Path) -> None:
    scenarios = ("single_stream", "offline")
    record = measure_file(two_inputs(tmp_path, apart=False), device="local", preset="instant", scenarios=scenarios)
    assert [row["n"] for row in record["rows"]] == [200, 40, 0, 0, 0, 0, 0]
    assert {row["verdict"] for row in record["rows"][2:]} == {"INVALID"}
    assert all(row["reasons"][0].startswith("golden mismatch: ") for row in record["rows"][2:])


def test_each_output_is_held_to_its_answer(tmp_path: Path) -> None:
    model = two_inputs(tmp_path)
    feeds = feeds_for(model, None, {})
    asked = request(model, tmp_path, np.zeros(1))
    for wrong in ("", "sum", "floats"):
        expected = {f"out/{name}": array + 50.0 * (name == wrong) for name, array in feeds.expected.items()}
        given = {f"in/{name}": array for name, array in feeds.inputs.items()}
        np.savez(tmp_path / "feeds.npz", **given, **expected)  # type: ignore[arg-type] # numpy's stubs see allow_pickle
        assert measure_here(asked)["golden"]["before"]["ok"] == (wrong == "")


@pytest.mark.usefixtures("instant")
def test_real_inputs_are_taken_with_or_without_their_batch(onnx_path: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(70, 3, 4, 4)).astype(np.float64)
    np.savez(tmp_path / "real.npz", input=images)
    feeds = feeds_for(onnx_path, tmp_path / "real.npz", {})
    np.testing.assert_array_equal(feeds.inputs["input"], images[:64, None].astype(np.float32))
    assert not feeds.random
    np.savez(tmp_path / "batched.npz", input=images[:, None])
    np.testing.assert_array_equal(
        feeds_for(onnx_path, tmp_path / "batched.npz", {}).inputs["input"], feeds.inputs["input"]
    )
    record = measure_file(onnx_path, device="local", preset="instant", inputs=tmp_path / "real.npz")
    assert not any("random" in reason for reason in record["reasons"])


def test_random_inputs_are_distinct_and_the_same_again(onnx_path: Path, tmp_path: Path) -> None:
    feeds = feeds_for(onnx_path, None, {})
    assert feeds.inputs["input"].shape == (64, 1, 3, 4, 4)
    assert len(np.unique(feeds.inputs["input"].reshape(64, -1), axis=0)) == 64
    np.testing.assert_array_equal(feeds.inputs["input"], feeds_for(onnx_path, None, {}).inputs["input"])
    assert (feeds.batched, feeds.random) == (True, True)
    ids = feeds_for(two_inputs(tmp_path), None, {}).inputs["ids"]
    assert ids.dtype == np.int64
    assert ids.min() >= 0
    assert ids.max() < 100


def test_open_sizes_are_named_by_the_user(tmp_path: Path) -> None:
    model = two_inputs(tmp_path, "length")
    with pytest.raises(UserError, match=r"input ids leaves sizes open \['batch', 'length'\]: --shape ids=1x1"):
        feeds_for(model, None, {})
    feeds = feeds_for(model, None, {"ids": [1, 9], "mask": [1, 9]})
    assert feeds.inputs["mask"].shape == (64, 1, 9)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"other": np.zeros((9, 3, 4, 4))}, r"holds \['other'\], the model's inputs are \['input'\]"),
        ({"input": np.zeros((9, 3, 4, 5))}, r"input has shape \(9, 3, 4, 5\): expected \(calls, 1, 3, 4, 4\)"),
        ({"input": np.zeros((0, 3, 4, 4))}, "expected"),
        ({"input": np.float32(3)}, "expected"),
    ],
)
def test_inputs_that_do_not_fit_are_one_line(
    onnx_path: Path, tmp_path: Path, arrays: dict[str, NDArray[Any]], text: str
) -> None:
    np.savez(tmp_path / "real.npz", **arrays)  # type: ignore[arg-type] # numpy's stubs see allow_pickle
    with pytest.raises(UserError, match=text):
        feeds_for(onnx_path, tmp_path / "real.npz", {})


def test_mistakes_are_one_line(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for model, how, text in (
        (tmp_path / "none.onnx", {}, "no such file"),
        (tmp_path / "text.onnx", {}, "ONNX Runtime cannot read it"),
        (onnx_path, {"device": "locl"}, "did you mean 'local'"),
        (onnx_path, {"preset": "quik"}, "did you mean 'quick'"),
        (onnx_path, {"threads": -1}, "threads = -1"),
        (onnx_path, {"shapes": {"x": [1]}}, "no input x: it has input"),
        (onnx_path, {"shapes": {"input": [1, 3]}}, "input input has 4 sizes"),
        (onnx_path, {"shapes": {"input": [1, 3, 9, 9]}}, "it does not compute"),
        (onnx_path, {"inputs": tmp_path / "text.onnx"}, "not an .npz of arrays"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            measure_file(model, **{"device": "local", "preset": "quick", **how})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def request(onnx: Path, folder: Path, expected: NDArray[Any], **changes: Any) -> dict[str, Any]:
    given = np.random.default_rng(0).normal(size=(64, 1, 3, 4, 4)).astype(np.float32)
    np.savez(folder / "feeds.npz", **{"in/input": given, "out/logits": expected})  # type: ignore[arg-type]
    warm_up = {"min_seconds": 0, "min_count": 30, "window": 10, "tolerance": 1e9, "max_seconds": 10}
    return {
        "protocol": PROTOCOL,
        "model": str(onnx),
        "feeds": str(folder / "feeds.npz"),
        "batched": True,
        "tolerances": {"max_abs": 0.05, "cosine": 0.99, "argmax_agreement": 0.0},
        "runtime": "onnxruntime",
        "threads": 1,
        "preset": {"min_seconds": 0, "min_count": 50, "warm_up": warm_up},
        "out": str(folder / "out.npz"),
        "observe": False,
        **changes,
    }


def answers(onnx: Path, count: int = 4) -> NDArray[Any]:
    given = np.random.default_rng(0).normal(size=(64, 1, 3, 4, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(onnx))
    return np.stack([session.run(None, {"input": feed})[0] for feed in given[:count]])


def test_another_answer_than_elsewhere_is_not_timed(onnx_path: Path, tmp_path: Path) -> None:
    right = answers(onnx_path)
    assert measure_here(request(onnx_path, tmp_path, right))["golden"]["after"]["ok"]
    for wrong in (right + 0.2 * np.abs(right).max(), -right, right[:, :, :3]):
        found = measure_here(request(onnx_path, tmp_path, wrong))
        assert (found["golden"]["before"]["ok"], "after" in found["golden"]) == (False, False)


def test_tensorrt_measures_a_file_of_one_input(install: Install, onnx_path: Path, cache: Path, tmp_path: Path) -> None:
    install("10.3")
    options = {"cuda": "fake", "cache_dir": str(cache)}
    found = measure_here(request(onnx_path, tmp_path, answers(onnx_path), runtime="tensorrt", options=options))
    assert found["golden"]["after"]["ok"]
    with np.load(tmp_path / "out.npz") as arrays:
        assert {"gpu_ns", "h2d_ns", "d2h_ns", "enqueue_ns"} <= set(arrays)
    asked = request(onnx_path, tmp_path, answers(onnx_path), runtime="tensorrt", options=options)
    np.savez(tmp_path / "feeds.npz", **{"in/a": np.zeros((2, 1)), "in/b": np.zeros((2, 1)), "out/c": np.zeros((2, 1))})  # type: ignore[arg-type]
    with pytest.raises(AgentError, match=r"one input and one output here, this has \['a', 'b'\]"):
        measure_here(asked)
    with pytest.raises(AgentError, match="not a measure request"):
        measure_here({**asked, "nonsense": 1})


@pytest.mark.parametrize("fixed", [False, True])
def test_an_engine_is_built_for_all_images_of_a_call(
    fixed: bool, install: Install, onnx_path: Path, cache: Path, tmp_path: Path
) -> None:
    install("10.3")
    if fixed:
        model = onnx.load(onnx_path)
        for tensor in (*model.graph.input, *model.graph.output):
            tensor.type.tensor_type.shape.dim[0].dim_value = 4
        onnx.save(model, onnx_path)
    options = {"cuda": "fake", "cache_dir": str(cache)}
    asked = request(onnx_path, tmp_path, np.zeros(1), runtime="tensorrt", options=options, batched=False)
    calls = np.random.default_rng(0).normal(size=(64, 4, 3, 4, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(onnx_path))
    logits = np.stack([session.run(None, {"input": feed})[0] for feed in calls[:3]])
    np.savez(tmp_path / "feeds.npz", **{"in/input": calls, "out/logits": logits})  # type: ignore[arg-type]
    found = measure_here(asked)
    assert found["golden"]["after"]["ok"]
    assert [shape[0] for shape in found["runtime"]["engine"]["inputs"]["input"]] == ([4] * 3 if fixed else [1, 4, 4])


@pytest.mark.usefixtures("instant")
def test_the_verb_prints_a_table_or_one_document(onnx_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["measure", str(onnx_path), "--preset", "instant", "--threads", "1", "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["threads"] == 1
    text = text_of(record)
    assert text.startswith("fp32.onnx on local: onnxruntime ")
    assert ", 1 thread, preset instant, 1 process\n" in text
    assert f"{record['latency_ms']['p50']:.3g} (" in text
    assert "- random inputs" in text
    bad = runner.invoke(app, ["measure", str(onnx_path), "--shape", "input=3xx4"])
    assert isinstance(bad.exception, UserError)
    assert "expected NAME=1x3x224x224" in str(bad.exception)


def test_rows_of_scenarios_are_named_in_the_table() -> None:
    table = dict.fromkeys(("p50", "p50_lo", "p50_hi", "p90", "p99"), 123.4) | {"p99": None}
    base = {"latency_ms": table, "throughput_ips": 1e3, "verdict": "VALID", "reasons": [], "fps": None, "batch": 8}
    rows = [
        {**base, "scenario": "single_stream"},
        {**base, "scenario": "periodic", "fps": 30.0, "throughput_ips": None},
        {**base, "scenario": "offline"},
    ]
    shown = text_of(
        {
            **{"model": "m.onnx", "device": "d", "threads": None, "preset": "standard", "num_runs": 3, "rows": rows},
            "runtime": {"name": "tensorrt", "version": "10.3"},
        }
    )
    assert "3 processes" in shown
    assert [line.split()[:2] for line in shown.splitlines()[3:]] == [
        ["single", "stream"],
        ["30", "frames/s"],
        ["batch", "8"],
    ]
    assert "123 (123 to 123)" in shown
    assert shown.endswith("VALID")
