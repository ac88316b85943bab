"""What is built, with which types, flags and limits, and how each failure is told: on fakes of every release."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy.agent import fake_cuda, fake_tensorrt, tensorrt_api
from deploy.agent.tensorrt_build import BuildOptions, build_engine
from tests.deploy.conftest import CHANNELS, CLASSES, SIDE, linear_onnx
from tests.deploy.fakes import Install, expected, failure, images, load
from tests.deploy.test_onnx_checks import node, save

WEAK, STRONG = ("8.5", "8.6"), ("10.3", "10.16", "11.4", "rtx")


def test_what_the_engine_really_got_is_in_the_engine(install: Install, onnx_path: Path, cache: Path) -> None:
    """Read from the fake's own header, not from what we say of it."""
    for level, precision in (("8.6", "int8"), ("8.6", "fp32"), ("10.3", "int8"), ("11.4", "fp16")):
        install(level)
        load(onnx_path, cache, precision=precision)
    headers = [json.loads(path.read_bytes().split(b"\n")[1]) for path in cache.glob("*.engine")]
    found = {(header["version"], tuple(header["flags"]), header["strong"]) for header in headers}
    assert found == {
        ("8.6.1", ("FP16", "INT8"), False),
        ("8.6.1", (), False),
        ("10.3.0", (), True),
        ("11.4.0.106", (), True),
    }


def test_where_10_refuses_its_own_strong_types_the_flags_are_tried_and_it_is_recorded(
    install: Install, onnx_path: Path, cache: Path
) -> None:
    install("10.3", strong_types_fail=True)
    engine = load(onnx_path, cache, precision="int8").describe()["engine"]
    assert (engine["typing"], engine["flags"]) == ("weak", ["INT8", "FP16"])
    assert "could not find any implementation for node convolution" in engine["fallback"]
    install("11.4", strong_types_fail=True)  # it has no flags to fall back on
    error = failure(onnx_path, cache, precision="int8")
    assert error.code == "E_BUILD"
    assert "could not find any implementation" in error.message


def test_out_of_memory_has_one_code_wherever_it_happens(
    install: Install, onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.3", memory_bytes=1000)
    errors = [failure(onnx_path, cache)]
    install("10.3", context_fails=True)
    errors.append(failure(onnx_path, cache))
    install("10.3")
    tiny = fake_cuda.FakeCuda(memory_bytes=fake_cuda.allocated_bytes() + 10)
    monkeypatch.setattr("deploy.agent.cuda.LIBRARIES", {"fake": lambda: tiny})
    errors.append(failure(onnx_path, cache))
    assert [error.code for error in errors] == ["E_OUT_OF_MEMORY"] * 3
    assert all("smaller batch" in error.message for error in errors)


@pytest.mark.parametrize("kills", [False, True])
@pytest.mark.parametrize(("asked", "little"), [(None, 256 << 20), (2 << 30, 1 << 29)])
def test_a_build_that_runs_out_of_memory_is_tried_again_with_less(
    install: Install, onnx_path: Path, cache: Path, asked: int | None, little: int, kills: bool
) -> None:
    install("10.3", memory_bytes=little, kills=kills)
    options = {} if asked is None else {"workspace_bytes": asked}
    runtime, inputs = load(onnx_path, cache, options=options), images(2)
    np.testing.assert_array_equal(runtime.infer(inputs), expected(onnx_path, inputs))
    told = runtime.describe()["engine"]["out_of_memory"]
    assert (told["asked_workspace_bytes"], told["workspace_bytes"]) == (asked, little)
    assert ("killed (SIGKILL)" if kills else "OutOfMemory") in told["error"]
    again = load(onnx_path, cache, options=options).describe()["engine"]
    assert (again["built_because"], again["out_of_memory"]) == (None, told)  # not built, nor killed, a third time


def test_memory_that_suffices_is_not_spared(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3")
    assert load(onnx_path, cache).describe()["engine"]["out_of_memory"] is None


def test_a_build_is_killed_twice_and_no_more(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3", memory_bytes=1000, kills=True)
    error = failure(onnx_path, cache)
    assert error.code == "E_OUT_OF_MEMORY"
    assert "add swap" in error.message
    assert list(cache.iterdir()) == []


def test_a_refused_file_names_the_node_as_well_as_the_release_can(
    install: Install, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no protobuf")
    for level, named in (("8.6", "node 7"), ("10.3", "Odd node odd_one")):
        install(level)
        error = failure(path, cache)
        assert error.code == "E_PARSE"
        assert f"refuses {named}" in error.message
        assert fake_tensorrt.VERSIONS[level] in error.message


def test_a_crash_while_building_is_an_error_with_its_signal(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3", crash="build")
    error = failure(onnx_path, cache)
    assert error.code == "E_CRASH"
    assert "build_engine" in error.message
    assert "SIGSEGV" in error.message
    assert list(cache.iterdir()) == []


def test_a_dla_takes_one_batch_falls_back_to_the_gpu_and_says_which_layers(
    install: Install, onnx_path: Path, cache: Path
) -> None:
    install("10.3", dla_cores=2)
    options = {"use_dla": True, "dla_core": 1}
    runtime = load(onnx_path, cache, precision="fp16", batch=4, options=options)
    facts = runtime.describe()
    assert facts["providers"] == ["DLA", "GPU"]
    assert facts["engine"]["dla"] == {"core": 1, "num_layers": 2, "on_gpu": ["reduction"]}
    # NVIDIA documents 10.3's DLA for the flags alone; a DLA takes no dynamic batch
    assert (facts["engine"]["typing"], facts["engine"]["flags"]) == ("weak", ["FP16"])
    assert facts["engine"]["inputs"]["input"] == [[4, CHANNELS, SIDE, SIDE]] * 3
    for count in (1, 4, 6):  # less than the batch: filled up, and cut off again
        np.testing.assert_array_equal(runtime.infer(images(count)), expected(onnx_path, images(count)))


def test_a_file_of_a_fixed_batch_is_taken_as_it_is(install: Install, cache: Path, tmp_path: Path) -> None:
    install("10.3")
    path, weight = tmp_path / "fixed.onnx", np.random.default_rng(4).normal(size=(CHANNELS * SIDE * SIDE, CLASSES))
    model = onnx.load_from_string(linear_onnx(weight))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    error = failure(path, cache)
    assert (error.code, "batch of 2 only, not 1" in error.message) == ("E_SHAPE", True)
    runtime = load(path, cache, batch=2)
    for count in (1, 2, 5):
        inputs = images(count)
        padded = np.concatenate([inputs, np.zeros((-count % 2, CHANNELS, SIDE, SIDE), np.float32)])
        pairs = [expected(path, padded[start : start + 2]) for start in range(0, len(padded), 2)]
        np.testing.assert_array_equal(runtime.infer(inputs), np.concatenate(pairs)[:count])


def test_only_the_batch_may_be_dynamic(install: Install, cache: Path, tmp_path: Path) -> None:
    install("10.3")
    relu = save(tmp_path / "x.onnx", [node("Relu", "input")], shape=["batch", 3, "height", 8])
    error = failure(relu, cache)
    assert (error.code, "only its batch may be dynamic" in error.message) == ("E_SHAPE", True)


@pytest.mark.parametrize("level", [*WEAK, *STRONG])
def test_an_operator_that_some_releases_have_as_a_plugin_is_found(
    level: str, install: Install, cache: Path, tmp_path: Path
) -> None:
    """FCOS's head normalises groups: opset 17 has InstanceNormalization for it."""
    install(level)
    ones = {"scale": np.ones(CHANNELS, np.float32), "shift": np.zeros(CHANNELS, np.float32)}
    nodes = [
        node("InstanceNormalization", "input", "scale", "shift", output="normal"),
        node("Relu", "normal", output="positive"),
        node("GlobalAveragePool", "positive", output="mean"),
        node("Flatten", "mean"),
    ]
    path = save(tmp_path / "x.onnx", nodes, ones, opset=17, shape=["batch", CHANNELS, SIDE, SIDE])
    np.testing.assert_array_equal(load(path, cache).infer(images(3)), expected(path, images(3)))


def test_8_6_takes_the_native_form(install: Install, onnx_path: Path) -> None:
    install("8.6")
    fake_tensorrt.touched.clear()
    build_engine(tensorrt_api.open_tensorrt("tensorrt"), str(onnx_path), BuildOptions("fp32"))
    assert ("OnnxParserFlag", "NATIVE_INSTANCENORM") in fake_tensorrt.touched


def test_the_fake_wants_what_8_wants(install: Install, tmp_path: Path) -> None:
    for level, wants in (("8.5", True), ("8.6", True), ("10.3", False)):
        install(level)
        trt: Any = importlib.import_module("tensorrt")
        ones = {name: np.ones(3, np.float32) for name in ("scale", "shift")}
        path = save(tmp_path / "x.onnx", [node("InstanceNormalization", "input", "scale", "shift")], ones, opset=17)
        builder = trt.Builder(None)
        flags = 1 if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") else 0
        parser = trt.OnnxParser(builder.create_network(flags), None)
        assert parser.parse_from_file(str(path)) != wants


def test_impossible_options_are_named(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"options": {"use_dla": True}}, "fp16 or int8 only"),
        ({"options": {"use_dla": True}, "precision": "fp16"}, "this device has 0"),
        ({"precision": "fp64"}, "fp64"),
        ({"batch": 0}, "batch 0"),
        ({"options": {"usedla": True}}, "use_dla"),
        ({"options": {"cuda": "opencl"}}, "pycuda"),
    ]
    for overrides, words in cases:
        error = failure(onnx_path, cache, **overrides)
        assert (error.code, words in error.message) == ("E_OPTION", True), (overrides, error.message)
