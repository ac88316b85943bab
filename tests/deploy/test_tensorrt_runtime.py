"""The TensorRT runtime against fakes of every release: an engine that computes with ONNX Runtime, a GPU on the host."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from deploy.agent import PROTOCOL, fake_cuda, fake_tensorrt, runtimes, tensorrt_runtime
from deploy.agent.errors import AgentError
from deploy.agent.profiling import profile
from tests.deploy.conftest import CHANNELS, CLASSES, SIDE, HandMadeBundle, linear_onnx
from tests.deploy.fakes import Install, expected, failure, images, load

WEAK, STRONG = ("8.5", "8.6"), ("10.3", "10.16", "11.4", "rtx")


@pytest.mark.parametrize("level", [*WEAK, *STRONG])
def test_every_release_infers_what_onnx_runtime_infers(
    level: str, install: Install, onnx_path: Path, cache: Path
) -> None:
    library = install(level)
    runtime = load(onnx_path, cache, precision="fp16", batch=4, options={"library": library})
    for count in (1, 3, 4, 9):  # below, at and above the engine's batch; 9 ends in a single image
        inputs = images(count, seed=count)
        np.testing.assert_array_equal(runtime.infer(inputs), expected(onnx_path, inputs))
    facts = runtime.describe()
    assert (facts["name"], facts["version"]) == (library, fake_tensorrt.VERSIONS[level])
    assert facts["cuda"]["library"] == "fake"
    assert facts["engine"]["typing"] == ("weak" if level in WEAK else "strong")
    assert facts["engine"]["flags"] == (["FP16"] if level in WEAK else [])
    assert facts["engine"]["inputs"] == {"input": [[n, CHANNELS, SIDE, SIDE] for n in (1, 4, 4)]}
    assert facts["engine"]["device_memory_bytes"] == 4096
    json.dumps(facts)


def test_a_calls_parts_are_those_of_the_call(
    install: Install, onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake's clock stands still but where a part does: 1 ms to copy in, 20 to execute, 3 to copy out, 5 to ask."""
    install("10.3")
    runtime, inputs = load(onnx_path, cache, batch=2), images(2)
    now, costs_ms = [0.0], {"in": 1.0, "run": 20.0, "out": 3.0, "ask": 5.0}

    def passing(what: str) -> None:
        now[0] += costs_ms[what] * 1e6

    def timed(method: str, what: str) -> None:
        real = getattr(fake_cuda.FakeCuda, method)

        def copy(self: Any, *arguments: Any) -> None:
            real(self, *arguments)
            fake_cuda.enqueue(arguments[2], lambda: passing(what))

        monkeypatch.setattr(fake_cuda.FakeCuda, method, copy)

    timed("copy_to_device", "in")
    timed("copy_to_host", "out")
    context, run = type(runtime._context), type(runtime._context)._execute
    ask = context.execute_async_v3

    def executed(self: Any) -> None:
        run(self)
        passing("run")

    def asked(self: Any, stream: int) -> Any:
        passing("ask")
        return ask(self, stream)

    monkeypatch.setattr(context, "_execute", executed)
    monkeypatch.setattr(context, "execute_async_v3", asked)
    monkeypatch.setattr("time.perf_counter_ns", lambda: int(now[0]))
    assert runtime.trace(inputs) == {"h2d": 1_000_000, "gpu": 20_000_000, "d2h": 3_000_000, "enqueue": 5_000_000}
    np.testing.assert_array_equal(runtime.infer(inputs), expected(onnx_path, inputs))


def test_results_are_read_after_the_stream_is_synchronised(
    install: Install, onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake's streams do nothing before that: without the call there is what was there before."""
    install("10.3")
    runtime = load(onnx_path, cache)
    before = runtime.infer(images(1))
    kept = before.copy()
    monkeypatch.setattr(fake_cuda.FakeCuda, "synchronize", lambda self, stream: None)
    np.testing.assert_array_equal(runtime.infer(images(1, seed=1)), kept)
    np.testing.assert_array_equal(before, kept)


def test_an_answer_is_the_callers_own(install: Install, onnx_path: Path, cache: Path) -> None:
    """Buffers are used again by the next call; what an earlier one gave stays."""
    install("10.3")
    runtime = load(onnx_path, cache, batch=2)
    answers = [runtime.infer(images(2, seed=seed)) for seed in range(3)]
    for seed, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, expected(onnx_path, images(2, seed=seed)))


def test_every_copy_is_of_page_locked_memory(
    install: Install, onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.3")
    runtime, seen = load(onnx_path, cache, batch=2), []
    for method, place in (("copy_to_device", 1), ("copy_to_host", 0)):
        real = getattr(fake_cuda.FakeCuda, method)

        def copy(self: Any, *arguments: Any, real: Any = real, place: int = place) -> None:
            seen.append(fake_cuda.is_pinned(arguments[place]))
            real(self, *arguments)

        monkeypatch.setattr(fake_cuda.FakeCuda, method, copy)
    runtime.infer(images(2))
    runtime.trace(images(1))
    assert seen == [True] * 4
    assert not fake_cuda.is_pinned(images(2))


def test_no_more_images_are_computed_than_were_given(install: Install, onnx_path: Path, cache: Path) -> None:
    """A smaller batch is told to the engine, not filled up to its largest."""
    install("10.3")
    runtime = load(onnx_path, cache, batch=4)
    for count, rows in ((4, 4), (1, 1), (6, 2)):
        runtime.infer(images(count))
        assert runtime._context.get_tensor_shape("logits") == (rows, CLASSES)


def test_an_engine_of_a_fixed_batch_is_filled_up_with_empty_images(
    install: Install, onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with those of the call before, which lie in the same buffer."""
    model = onnx.load(onnx_path)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, onnx_path)
    install("10.3")
    runtime, seen, real = load(onnx_path, cache, batch=4), [], fake_cuda.FakeCuda.copy_to_device

    def copy(self: Any, address: int, source: Any, stream: int) -> None:
        seen.append(source.copy())
        real(self, address, source, stream)

    monkeypatch.setattr(fake_cuda.FakeCuda, "copy_to_device", copy)
    runtime.infer(images(4))
    answer = runtime.infer(images(1, seed=1))
    padded = np.concatenate([images(1, seed=1), np.zeros((3, CHANNELS, SIDE, SIDE), np.float32)])
    np.testing.assert_array_equal(seen[1], padded)
    np.testing.assert_array_equal(answer, expected(onnx_path, padded)[:1])


def test_inputs_need_not_be_contiguous_nor_float32(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3")
    runtime, inputs = load(onnx_path, cache, batch=4), images(8)
    np.testing.assert_array_equal(runtime.infer(inputs[::2]), expected(onnx_path, inputs[::2].copy()))
    np.testing.assert_array_equal(runtime.infer(inputs[:4].astype(np.float64)), expected(onnx_path, inputs[:4]))


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 4, 4), (3, 4, 4), (0, 3, 4, 4)])
def test_wrong_shapes_are_named(shape: tuple[int, ...], install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3")
    runtime = load(onnx_path, cache)
    with pytest.raises(AgentError) as caught:
        runtime.infer(np.zeros(shape, np.float32))
    assert caught.value.code == "E_SHAPE"
    assert str(shape) in caught.value.message
    assert "3, 4, 4" in caught.value.message


def test_buffers_are_of_the_engines_size_and_given_back(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3")
    before, pinned = fake_cuda.allocated_bytes(), fake_cuda.pinned_bytes()
    runtime = load(onnx_path, cache, batch=8)
    assert fake_cuda.allocated_bytes() - before == 4 * 8 * (CHANNELS * SIDE * SIDE + CLASSES)
    for _ in range(3):
        runtime.infer(images(20))
    assert fake_cuda.allocated_bytes() - before == 4 * 8 * (CHANNELS * SIDE * SIDE + CLASSES)
    runtime.close()
    assert (fake_cuda.allocated_bytes(), fake_cuda.pinned_bytes()) == (before, pinned)


def test_a_crash_while_deserialising_is_an_error_not_the_agents_end(
    install: Install, onnx_path: Path, cache: Path
) -> None:
    install("10.3", crash="deserialize")
    error = failure(onnx_path, cache)
    assert (error.code, "SIGSEGV" in error.message, "check_engine" in error.message) == ("E_CRASH", True, True)


def test_the_version_that_chooses_a_file_is_tensorrts_own(install: Install) -> None:
    """TensorRT-RTX counts anew: its 1.7 is not older than 8.6."""
    install("rtx")
    install("10.3")
    assert tensorrt_runtime.version({}) == "10.3.0"


def test_rtx_has_no_version_that_could_choose(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # not to be imported
    assert tensorrt_runtime.version({}) is None
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert tensorrt_runtime.version({}) is None


def test_onnx_runtime_takes_no_options(onnx_path: Path) -> None:
    with pytest.raises(AgentError, match="no options"):
        runtimes.load("onnxruntime", runtimes.Loading(onnx_path, "input", "logits", 1, options={"use_dla": True}))


def test_an_engine_with_other_names_is_refused(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3")
    error = failure(onnx_path, cache, output_name="scores")
    assert error.code == "E_ENGINE"
    assert "['input', 'logits']" in error.message


def test_half_precision_in_and_out_is_cast_and_other_types_are_refused(
    install: Install, cache: Path, tmp_path: Path
) -> None:
    install("10.3")
    weight, path = np.random.default_rng(3).normal(size=(CHANNELS * SIDE * SIDE, CLASSES)), tmp_path / "other.onnx"
    path.write_bytes(linear_onnx(weight, TensorProto.FLOAT16))
    inputs = images(3)
    logits = load(path, cache, batch=2).infer(inputs)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected(path, inputs.astype(np.float16)).astype(np.float32))
    path.write_bytes(linear_onnx(weight, TensorProto.INT32))
    assert failure(path, cache).code == "E_ENGINE"


def test_without_tensorrt_or_with_one_too_old_the_way_out_is_named(
    onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failure(onnx_path, cache, options={"library": "tensorrt"})
    assert error.code == "E_NO_RUNTIME"
    assert "apt install python3-libnvinfer" in error.message
    old = types.ModuleType("tensorrt")
    vars(old).update(__version__="8.2.1.8", IExecutionContext=type("IExecutionContext", (), {}))
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    error = failure(onnx_path, cache, options={"library": "tensorrt"})
    assert (error.code, "8.2.1.8 is too old" in error.message) == ("E_OLD", True)


def test_profile_measures_tensorrt_like_any_runtime(
    install: Install, bundle: HandMadeBundle, cache: Path, tmp_path: Path
) -> None:
    install("10.3")
    out, before = tmp_path / "samples.npz", fake_cuda.allocated_bytes()
    answer = profile(
        {
            "protocol": PROTOCOL,
            "bundle": str(bundle.folder),
            "precision": "fp32",
            "runtime": "tensorrt",
            "batch": 2,
            "threads": 0,
            "preset": {
                "min_seconds": 0,
                "min_count": 50,
                "warm_up": {"min_seconds": 0, "min_count": 30, "window": 10, "tolerance": 1e9, "max_seconds": 10},
            },
            "evaluate": True,
            "out": str(out),
            "options": {"cuda": "fake", "cache_dir": str(cache)},
            "scenarios": ["single_stream", "offline"],
        }
    )
    # of all the engines only that of the single stream goes on
    assert fake_cuda.allocated_bytes() - before == 4 * 2 * (CHANNELS * SIDE * SIDE + CLASSES)
    assert [check["ok"] for check in answer["golden"].values()] == [True, True]
    assert answer["runtime"]["engine"]["inputs"]["input"][2][0] == 2
    assert answer["runtime"]["cold_ms"]["build"] > 0
    assert answer["runtime"]["cold_ms"]["deserialise"] > 0
    # two processes were started to build and to try it: that is no cold load
    load_ms, cold_ms = answer["timing"]["cold_load_ms"], answer["runtime"]["cold_ms"]
    assert cold_ms["deserialise"] < load_ms < cold_ms["children"]
    with np.load(out) as arrays:
        labels = np.load(bundle.folder / "eval_labels.npy")
        assert (arrays["logits"].argmax(axis=1) != labels).sum() == bundle.wrong
        assert len(arrays["samples_ns"]) == 50
        for part in ("h2d", "gpu", "d2h", "enqueue"):
            assert len(arrays[f"{part}_ns"]) == 200
            assert (arrays[f"{part}_ns"] >= 0).all()
        assert len(arrays["pre_ns"]) == len(arrays["post_ns"]) == 64
