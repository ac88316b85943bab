"""The agent's parts, in this process: clock, golden check, machine, preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.agent import machine
from deploy.agent.bundle import Bundle
from deploy.agent.errors import AgentError
from deploy.agent.golden import golden_check
from deploy.agent.measuring import Subject, is_finite, measure
from deploy.agent.profiling import prepared_inputs
from deploy.agent.store import sha256_of
from deploy.agent.timing import Timed, time_calls, warm_up
from export.bundle import preprocess

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.deploy.conftest import HandMadeBundle

TOLERANCES = {"max_abs": 0.01, "cosine": 0.99999, "argmax_agreement": 100.0}


class Scripted:
    """A network and a clock in one: the i-th call takes `costs_ns[i]`, and nothing else takes any time."""

    def __init__(self, costs_ns: list[int]) -> None:
        self.now, self.costs = 0, iter(costs_ns)
        self.seen: list[float] = []

    def infer(self, images: NDArray[np.float32]) -> None:
        self.seen.append(float(images[0]))
        self.now += next(self.costs)

    def clock(self) -> int:
        return self.now


def inputs(count: int) -> list[NDArray[np.float32]]:
    return [np.array([index], dtype=np.float32) for index in range(count)]


def test_answers_that_change_while_it_runs_are_found_by_the_check_behind_it() -> None:
    class Network:
        def infer(self, images: int) -> None:
            pass

        def trace(self, images: int) -> dict[str, int]:
            return {}

        def cross_check(self, batch: int) -> None:
            pass

        def describe(self) -> dict[str, Any]:
            return {}

    reports = iter([{"ok": True}, {"ok": False}])
    subject = Subject(lambda batch: Network(), lambda *_: [0], lambda *_: next(reports), lambda *_: {}, ())
    warm_up = {"min_seconds": 0, "min_count": 1, "window": 1, "tolerance": 1e9, "max_seconds": 1}
    preset = {"min_seconds": 0, "min_count": 10, "warm_up": warm_up}
    answer = measure(subject, 1, preset, ["single_stream"], False).answer
    assert [check["ok"] for check in answer["golden"].values()] == [True, False]


def timed(script: Scripted, min_seconds: float, min_count: int) -> Timed:
    return time_calls(script.infer, inputs(3), min_seconds=min_seconds, min_count=min_count, clock=script.clock)


def test_samples_are_the_costs_of_the_calls_in_order_over_cycled_inputs() -> None:
    script = Scripted([5, 7, 11, 13, 17])
    assert list(timed(script, min_seconds=0, min_count=5).samples_ns) == [5, 7, 11, 13, 17]
    assert script.seen == [0, 1, 2, 0, 1]


def test_one_output_in_a_hundred_is_looked_at_between_the_readings_of_the_clock() -> None:
    script = Scripted([1000] * 5000)
    seen: list[int] = []

    def look(output: None) -> None:
        seen.append(len(script.seen))
        script.now += 10**6

    result = time_calls(script.infer, inputs(3), min_seconds=0, min_count=5000, look=look, clock=script.clock)
    assert set(result.samples_ns) == {1000}
    assert seen[0] == 1
    assert 30 <= len(seen) <= 80
    assert len({place % 100 for place in seen}) > 20  # at random, not in step with the inputs


@pytest.mark.parametrize(
    ("output", "finite"),
    [
        (np.zeros(3, np.float16), True),
        (np.array([1, np.nan]), False),
        ([np.zeros(2), np.array([np.inf], np.float32)], False),
        ([np.array([1, 2]), np.array(["a"])], True),
    ],
)
def test_what_is_finite(output: Any, finite: bool) -> None:
    assert is_finite(output) == finite


@pytest.mark.parametrize(("min_seconds", "min_count", "n"), [(10.0, 3, 10), (3.0, 10, 10), (4.5, 1, 5)])
def test_timing_stops_after_duration_and_count(min_seconds: float, min_count: int, n: int) -> None:
    result = timed(Scripted([10**9] * 99), min_seconds, min_count)
    assert len(result.samples_ns) == n
    assert result.wall_s == n


def warmed(costs_ns: list[int], max_seconds: float = 1e9, min_count: int = 1, min_seconds: float = 0) -> Timed:
    script = Scripted(costs_ns)
    return warm_up(
        script.infer,
        inputs(2),
        min_seconds=min_seconds,
        min_count=min_count,
        window=10,
        tolerance=0.02,
        max_seconds=max_seconds,
        clock=script.clock,
    )


def test_warm_up_waits_until_three_windows_agree() -> None:
    falling = [2000] * 10 + [1500] * 10 + [1000] * 100
    result = warmed(falling)
    assert result.steady
    assert len(result.samples_ns) == 50  # the first three equal windows end here


def test_warm_up_judges_medians_so_that_a_spike_a_window_does_not_hold_it_up() -> None:
    assert len(warmed(([1000] * 9 + [50_000]) * 10).samples_ns) == 30


def test_warm_up_that_never_settles_ends_at_its_limit_and_says_so() -> None:
    result = warmed([1000 + 100 * (index // 10) for index in range(10_000)], max_seconds=1e-3)
    assert not result.steady
    assert result.wall_s >= 1e-3


@pytest.mark.parametrize(
    ("costs", "calls", "steady"),
    [
        ([9_000] + [1000] * 99, 18, True),  # 26 us: thirds of 6 calls instead of windows of 10
        ([1000] * 12 + [1200] * 99, 24, False),
        ([1000] * 8 + [1100] * 8 + [1210] * 99, 24, False),
        ([26_000] * 99, 15, True),  # one call fills the time: 15 are made all the same
        ([26_000] * 10 + [13_000] * 99, 15, False),
        ([1000 + 100 * (call // 10 % 2) for call in range(99)], 25, False),  # its thirds disagree, as its windows would
    ],
)
def test_a_network_too_slow_for_three_windows_is_judged_by_thirds(costs: list[int], calls: int, steady: bool) -> None:
    result = warmed(costs, max_seconds=26e-6, min_count=50)
    assert (len(result.samples_ns), result.steady) == (calls, steady)


def test_a_fast_network_is_judged_by_windows_alone() -> None:
    """Every other ten calls take twice as long: thirds of a long run would all have the same median."""
    assert not warmed([1000 + 1000 * (call // 10 % 2) for call in range(999)], max_seconds=9e-4).steady


def test_warm_up_keeps_its_minima() -> None:
    assert len(warmed([1000] * 999, min_count=70).samples_ns) == 70
    assert len(warmed([1000] * 999, min_seconds=80e-6).samples_ns) == 80


def test_golden_check_holds_each_tolerance() -> None:
    expected = np.array([[1.0, 2.0, 4.0], [3.0, 1.0, -1.0]], dtype=np.float32)
    assert golden_check(expected, expected, TOLERANCES) == {
        "ok": True,
        "num": 2,
        "tolerances": TOLERANCES,
        "max_abs": 0.0,
        "cosine": pytest.approx(1.0),
        "argmax_agreement": 100.0,
    }
    loose = {"max_abs": 1e9, "cosine": -1.0, "argmax_agreement": 0.0}
    off = expected[:, ::-1]
    for key, value in TOLERANCES.items():
        report = golden_check(off, expected, {**loose, key: value})
        assert not report["ok"], key
    assert golden_check(off, expected, loose)["ok"]
    assert golden_check(off, expected, loose)["argmax_agreement"] == 0.0


def test_golden_check_takes_the_worst_image_for_the_cosine() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    got = np.array([[1.0, 0.0], [1.0, 1.0]], dtype=np.float32)
    assert golden_check(got, expected, TOLERANCES)["cosine"] == pytest.approx(2**-0.5)


@pytest.mark.parametrize("got", [[[np.nan, 1.0]], [[np.inf, 1.0]], [[1.0, 2.0, 3.0]]])
def test_golden_check_refuses_what_is_not_finite_or_of_another_shape(got: list[list[float]]) -> None:
    report = golden_check(np.array(got, dtype=np.float32), np.array([[0.0, 1.0]], dtype=np.float32), TOLERANCES)
    assert report["ok"] is False
    assert report["max_abs"] is None


STAT = """cpu  9999 9999 9999 0 0 0 0 0 0 0
cpu0 {user} 10 30 5000 70 5 5 {steal} 0 0
cpu1 100 0 0 9000 0 0 0 0 0 0
cpu2 77777 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Two CPUs of three allowed, a scripted clock, and a /proc/stat in ticks of 10 ms."""
    facts: dict[str, float] = {"user": 0, "steal": 0, "wall": 0.0, "own": 0.0}
    text = {"/proc/stat": lambda: STAT.format(user=int(facts["user"]), steal=int(facts["steal"]))}
    monkeypatch.setattr(machine, "text_of", lambda path: text[path]())
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    monkeypatch.setattr("time.perf_counter", lambda: facts["wall"])
    monkeypatch.setattr("time.process_time", lambda: facts["own"])
    return facts


def test_foreign_load_is_what_is_busy_and_not_ours(two_cpus: dict[str, float]) -> None:
    load = machine.ForeignLoad()
    two_cpus.update(user=900, steal=100, wall=5.0, own=7.5)  # 10 s busy, 7.5 s of them ours
    assert load.num_cpus() == pytest.approx(0.5)


def test_foreign_load_is_not_told_over_less_than_a_second(two_cpus: dict[str, float]) -> None:
    load = machine.ForeignLoad()
    two_cpus.update(user=50, wall=0.9)
    assert load.num_cpus() is None


def test_foreign_load_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "text_of", lambda path: "")
    assert machine.ForeignLoad().num_cpus() is None


def test_preprocessing_is_the_manifests_formula(bundle: HandMadeBundle) -> None:
    images = np.random.default_rng(3).integers(0, 256, size=(7, 3, 4, 4), dtype=np.uint8)
    got = Bundle(str(bundle.folder)).preprocess(images)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    want = ((images.transpose(0, 2, 3, 1) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("batch", "num"), [(1, 64), (3, 64), (16, 4)])
def test_timed_inputs_are_batches_of_distinct_real_images(bundle: HandMadeBundle, batch: int, num: int) -> None:
    opened = Bundle(str(bundle.folder))
    batches = prepared_inputs(opened, batch, num)
    assert [images.shape for images in batches] == [(batch, 3, 4, 4)] * num
    assert all(images.flags.c_contiguous for images in batches)
    real = {row.tobytes() for row in opened.preprocess(np.load(bundle.folder / "eval.npy"))}
    seen = {row.tobytes() for images in batches for row in images}
    assert seen <= real
    assert len(seen) == min(num * batch, 80)


def test_preprocessing_equals_the_hosts(bundle: HandMadeBundle) -> None:
    images = np.random.default_rng(4).integers(0, 256, size=(7, 3, 4, 4), dtype=np.uint8)
    ours = Bundle(str(bundle.folder)).preprocess(images)
    np.testing.assert_array_equal(ours, preprocess(images, bundle.manifest()["preprocessing"]))


@pytest.mark.parametrize("name", ["golden.npz", "eval.npy", "fp32.onnx"])
def test_every_file_is_held_against_its_hash(bundle: HandMadeBundle, name: str) -> None:
    (bundle.folder / name).write_bytes(b"other bytes")
    opened = Bundle(str(bundle.folder))
    calls: dict[str, Callable[[], object]] = {
        "golden.npz": opened.golden,
        "eval.npy": opened.evaluation_images,
        "fp32.onnx": lambda: opened.model_path("fp32", "onnxruntime"),
    }
    with pytest.raises(AgentError, match=f"{name}: its bytes are not those of the manifest") as caught:
        calls[name]()
    assert caught.value.code == "E_HASH"


def test_a_file_is_hashed_once(bundle: HandMadeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation set of gigabytes takes minutes, and is asked for several times a measurement."""
    opened, hashed = Bundle(str(bundle.folder)), list[Path]()

    def heard(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr("deploy.agent.bundle.sha256_of", heard)
    for _ in range(3):
        assert len(opened.evaluation_images()) == 80
    assert hashed == [bundle.folder / "eval.npy"]


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"manifest\.json: not a readable manifest"):
        Bundle(str(tmp_path))
