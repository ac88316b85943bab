"""The order of a measurement, with a network that is made up: what is read when, and with which inputs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import weakref
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import deploy.measure
import deploy.measure_file
from afpkd.errors import UserError
from afpkd.record import sha256_of
from deploy.agent import PROTOCOL, measuring, periodic
from deploy.agent import bundle as agent_bundle
from deploy.agent.any_file import measure_file
from deploy.agent.bundle import Bundle
from deploy.agent.errors import AgentError, line_of
from deploy.agent.measuring import BATCHES, OFFLINE, SINGLE_STREAM, Subject, Watch, measure
from deploy.agent.profiling import Request, _Opened, prepared_inputs
from deploy.agent.timing import Timed
from deploy.devices import find_device
from deploy.measure_file import measure_file as measure_any_file
from deploy.presets import check_time, find_preset
from tests.deploy.conftest import HandMadeBundle, linear_onnx, linear_weight
from tests.deploy.test_measure import measured
from tests.deploy.test_measure_file import answers, request

PRESET: dict[str, Any] = {
    "min_seconds": 0,
    "min_count": 10,
    "warm_up": {"min_seconds": 0, "min_count": 1, "window": 1, "tolerance": 1e9, "max_seconds": 1},
}

IN_A_PROCESS_OF_ITS_OWN = """
import json
from tests.deploy.test_measuring import PRESET, Network, subject_of
from deploy.agent.measuring import measure
found = measure(subject_of(lambda batch: Network(megabytes=8 * batch)), 1, PRESET, ["single_stream", "offline"], False)
print(json.dumps(found.answer["memory"]))
"""


class Network:
    """Says of each image its first pixel; a call takes `megabytes` and keeps them."""

    def __init__(self, megabytes: int = 0) -> None:
        self._megabytes, self._kept = megabytes, b""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self._kept = b"x" * (self._megabytes << 20)
        return images[:, 0]

    def trace(self, images: Any) -> dict[str, int]:
        return {}

    def cross_check(self, batch: int) -> None:
        pass

    def close(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {}


def subject_of(load: Any, asked: list[tuple[int, int]] | None = None) -> Subject:
    def inputs(batch: int, num: int) -> list[NDArray[np.float32]]:
        if asked is not None:
            asked.append((batch, num))
        return [np.zeros((batch, 4), np.float32)] * num

    return Subject(load, inputs, lambda *_: {"ok": True}, lambda *_: {}, BATCHES)


def test_peak_memory_is_that_of_the_row_that_is_quoted() -> None:
    """One image takes 8 MB, the 32 of the largest batch take 256."""
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], capture_output=True, text=True, check=True)
    memory = json.loads(done.stdout)
    assert memory["source"] == "VmHWM"
    assert 8 <= (memory["peak_bytes"] - memory["before_load_bytes"]) / 2**20 < 64


def test_batches_are_cycled_through_as_many_images_as_single_calls() -> None:
    asked: list[tuple[int, int]] = []
    measure(subject_of(lambda batch: Network(), asked), 1, PRESET, [SINGLE_STREAM, OFFLINE], False)
    assert asked == [(1, 64), (1, 64), (2, 32), (4, 16), (8, 8), (16, 4), (32, 2)]


def test_a_file_of_a_bundle_is_hashed_once(bundle: HandMadeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(agent_bundle, "sha256_of", noted)
    opened = Bundle(str(bundle.folder))
    for batch in (1, 2):
        prepared_inputs(opened, batch, 4)
        opened.evaluation_labels()
    assert sorted(hashed) == ["eval.npy", "eval_labels.npy"]


class Watched:
    """A runtime that notes how many images each call has, and answers batches of 8 wrongly."""

    def __init__(self, runtime: Any, batch: int) -> None:
        self.calls: list[int] = []
        self._runtime, self._batch = runtime, batch
        self.trace, self.cross_check, self.describe = runtime.trace, runtime.cross_check, runtime.describe
        self.close = runtime.close

    def infer(self, images: NDArray[np.float32]) -> Any:
        self.calls.append(len(images))
        return self._runtime.infer(images) + 9 * (self._batch == 8)


def test_each_batch_is_checked_in_whole_batches_before_it_is_timed(bundle: HandMadeBundle, tmp_path: Path) -> None:
    """16 golden images: of the batch of 32 they fill one call twice over."""
    asked = Request(
        protocol=PROTOCOL,
        bundle=str(bundle.folder),
        precision="fp32",
        runtime="onnxruntime",
        batch=1,
        threads=1,
        preset=PRESET,
        evaluate=False,
        out=str(tmp_path / "out.npz"),
    )
    subject, made = _Opened(asked).subject(), []

    def load(batch: int) -> Watched:
        made.append(Watched(subject.load(batch), batch))
        return made[-1]

    found = measure(subject._replace(load=load, batches=(3, 8, 32)), 1, PRESET, [OFFLINE], False)
    facts = found.answer["timing"]["offline"]
    assert [(one["batch"], one["golden"]["ok"], one["steady"]) for one in facts] == [
        (3, True, True),
        (8, False, None),
        (32, True, True),
    ]
    assert [one["golden"]["num"] for one in facts] == [18, 16, 32]
    assert [set(one.calls) for one in made] == [{1}, {3}, {8}, {32}]
    assert len(made[2].calls) == 2  # the check, and nothing more
    assert [len(found.arrays[f"offline_{batch}_ns"]) for batch in (3, 8, 32)] == [2, 0, 2]


class Failing(Network):
    """Cannot take a batch at all, or no longer than it is checked; a large one takes more memory than there is."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self._batch, self._calls = batch, 0

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self._calls += 1
        if self._batch == 2 or (self._batch == 4 and self._calls > 1):
            raise RuntimeError(f"no batch\nof {self._batch}")
        return super().infer(images)


@pytest.mark.parametrize(
    "lack",
    [MemoryError("64 GB"), AgentError("E_OUT_OF_MEMORY", "it is full"), RuntimeError("Failed to allocate 64 GB")],
)
def test_a_batch_that_fails_costs_its_own_numbers_alone(lack: Exception) -> None:
    alive: list[weakref.ref[Network]] = []

    def load(batch: int) -> Network:
        assert not any(found() for found in alive[1:])  # the first is the single stream's
        if batch == 16:
            raise lack
        made = Failing(batch)
        alive.append(weakref.ref(made))
        return made

    subject = subject_of(load)._replace(check=lambda runtime, batch: {"ok": runtime.infer(np.zeros((batch, 4))).size})
    found = measure(subject, 1, PRESET, [SINGLE_STREAM, OFFLINE], False)
    facts = found.answer["timing"]["offline"]
    second, fourth = "RuntimeError: no batch of 2", "RuntimeError: no batch of 4"
    last = f"{line_of(lack)}: larger batches were left out"
    assert {one["batch"]: one["failed"] for one in facts} == {1: None, 2: second, 4: fourth, 8: None, 16: last}
    assert [one["golden"] and one["golden"]["ok"] for one in facts] == [1, None, 4, 8, None]
    assert [len(found.arrays[f"offline_{one['batch']}_ns"]) for one in facts] == [2, 0, 0, 2, 0]
    assert len(found.arrays["samples_ns"]) == 10
    assert found.answer["golden"]["after"]["ok"]


def mixed_up(folder: Path) -> Path:
    """The linear layer, but the mean over the batch: right alone, and wrong beside others."""
    model = onnx.load_from_string(linear_onnx(linear_weight()))
    axis = numpy_helper.from_array(np.array([0]), "axis")
    mean = helper.make_node("ReduceMean", ["logits_alone", "axis"], ["logits"], keepdims=1)
    model.graph.node[-1].output[0] = "logits_alone"
    model.graph.node.append(mean)
    model.graph.initializer.append(axis)
    onnx.save(model, folder / "mean.onnx")
    return folder / "mean.onnx"


def test_batches_are_calls_put_together(onnx_path: Path, tmp_path: Path) -> None:
    asked = request(onnx_path, tmp_path, answers(onnx_path), scenarios=["single_stream", "offline"])
    measure_file(asked)
    with np.load(tmp_path / "out.npz") as arrays:
        assert {name for name in arrays if name.startswith("offline")} == {
            f"offline_{batch}_ns" for batch in (1, 2, 4, 8, 16, 32)
        }
        assert "state_values" not in arrays  # nobody asked to observe
    found = measure_file({**asked, "model": str(mixed_up(tmp_path))})["timing"]["offline"]
    assert {one["batch"]: one["golden"]["ok"] for one in found} == {1: True, **dict.fromkeys((2, 4, 8, 16, 32), False)}
    with np.load(tmp_path / "out.npz") as arrays:
        assert [len(arrays[f"offline_{batch}_ns"]) for batch in (1, 2, 32)] == [10, 0, 0]
    measure_file({**asked, "batched": False})
    with np.load(tmp_path / "out.npz") as arrays:
        assert not any(name.startswith("offline") for name in arrays)


def test_what_is_measured_beside_the_single_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes are asked for: the two fixed rates get them, a trial and a batch get half a minute."""
    played, timed = [], []

    def play(infer: Any, inputs: Any, *, fps: float, seconds: float) -> periodic.Frames:
        played.append(seconds)
        return periodic.Frames(fps, array("q", [1]), int(fps > 100))

    def time_calls(infer: Any, inputs: Any, **least: Any) -> Timed:
        timed.append(least)
        return Timed(array("q", [1]), array("q", [1]), 1.0, True)

    monkeypatch.setattr(periodic, "play", play)
    monkeypatch.setattr(measuring, "time_calls", time_calls)
    preset = {**PRESET, "min_seconds": 600, "min_count": 24_576}
    watch = Watch(None)
    facts, _ = measuring.frames(Network(), [0], preset, 1e9 / 90, watch)
    assert facts["sustainable_fps"] == pytest.approx(100, rel=0.02)
    assert played[:2] == [600, 600]
    assert set(played[2:]) == {30}
    measuring.batches(subject_of(lambda batch: Network()), preset, watch)
    assert {"periodic_30", "periodic_60", "offline_1", "offline_32"} <= set(watch.windows_ns)
    assert timed == [{"min_seconds": 30, "min_count": 662}] * 6


def test_no_measurement_begins_that_its_device_would_end(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = ("single_stream", "periodic", "offline")
    for name in ("quick", "standard", "mlperf"):
        check_time(find_preset(name), everything, "board", 3600.0)  # a board's default
    check_time(find_preset("mlperf"), ("single_stream",), "board", 900.0)
    assert [find_device(name).max_seconds for name in ("local", "local-gpu")] == [86_400, 86_400]
    brief = dataclasses.replace(find_device("local"), max_seconds=1.0)
    monkeypatch.setattr(deploy.measure, "find_device", lambda name: brief)
    with pytest.raises(UserError, match=r"ends a job after 1 s, preset quick takes 23 s at least for single_stream"):
        measured(bundle, tmp_path / "row.json", preset="quick", scenarios=everything)
    monkeypatch.setattr(deploy.measure_file, "find_device", lambda name: brief)
    with pytest.raises(UserError, match="ends a job after 1 s"):
        measure_any_file(bundle.folder / "fp32.onnx", device="local", preset="quick", scenarios=everything)
    assert not list(tmp_path.glob("row*"))
