"""What readings say of a machine: made by hand, and by the sampler on a tree that changes while it looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.agent.sampler import Sampler
from deploy.machine_state import observer_cost, slowed_by, state_of, steal_share, summary, unwatched_s
from tests.deploy.boards import SENSORS_5, laid_out
from tests.deploy.states import SECOND, state


def steps(before: float, after: float, at: int = 30, count: int = 60) -> np.ndarray[Any, Any]:
    return np.where(np.arange(count) < at, before, after)


def test_gauges_have_a_range_over_the_timed_window_and_counters_a_growth() -> None:
    found = summary(state({"gpu_hz/x": steps(5, 9, at=20), "throttles/cpu0": np.arange(60)}, timed=(3, 5)))
    assert found["gpu_hz/x"] == {"least": 9, "median": 9, "most": 9}
    assert found["throttles/cpu0"] == {"growth": 21 + 1 - 1}  # rounds 29 (before) to 50 (behind)
    json.dumps(found)


def test_a_sensor_that_never_answered_is_left_out() -> None:
    assert summary(state({"gpu_hz/x": [np.nan] * 60}, timed=(1, 5))) == {}


@pytest.mark.parametrize(
    ("sensor", "values", "told"),
    [
        ("over_current/oc3", steps(4, 6), "2 over-current or under-voltage events"),
        ("throttles/cpu1", steps(0, 1), "1 thermal throttle events of the CPU"),
        ("quota_throttled_s/cgroup", steps(1.0, 1.75), "a CPU quota (cgroup) held it back for 0.75 s of CPU time"),
        ("cooling/0:cpufreq-cpu0", steps(0, 2), "cpufreq-cpu0 cooled by slowing down"),
        ("cooling/0:cpufreq-cpu0", steps(0, 2, at=5), "cpufreq-cpu0 cooled by slowing down"),  # since the warm-up
        ("cooling/0:cpufreq-cpu0", np.full(60, 2.0), None),  # as it was when the process began
        ("cooling/0:cpufreq-cpu0", steps(2, 0), None),
        ("slowed_by/gpu0", steps(0, 0x44), "the GPU reports software power cap"),
        ("slowed_by/gpu0", steps(0x44, 0, at=5), None),
        ("temperature_c/cpu", steps(40, 99), None),
        ("over_current/oc3", steps(4, 6, at=5), None),
        ("over_current/oc3", steps(4, 6, at=55), None),
    ],
)
def test_what_slows_a_machine_down_is_named_where_it_happened_meanwhile(
    sensor: str, values: np.ndarray[Any, Any], told: str | None
) -> None:
    found = slowed_by(state({sensor: values}, timed=(1, 5)), locked=False)
    assert found[:1] == ([told] if told else [])


def test_every_reason_of_a_gpu_is_told() -> None:
    found = slowed_by(state({"slowed_by/gpu0": steps(0x8, 0x20)}, timed=(1, 5)), locked=False)
    assert found == ["the GPU reports hardware slowdown", "the GPU reports software thermal slowdown"]


def test_a_locked_clock_that_falls_is_throttling_and_a_free_one_is_not() -> None:
    fell = state({"gpu_hz/x": steps(1000e6, 900e6, at=45)}, timed=(1, 5))
    assert slowed_by(fell, locked=True) == ["x fell from 1000 to 900 MHz"]
    assert slowed_by(fell, locked=False) == []
    once = np.full(200, 1000e6)
    once[50:53] = 900e6  # 1.5 % of the readings
    assert slowed_by(state({"gpu_hz/x": once}, timed=(0, 20)), locked=True) == []


def test_a_locked_clock_that_never_came_to_its_highest_is_throttling_too() -> None:
    slow = state({"gpu_hz/x": np.full(60, 900e6)}, timed=(1, 5))
    assert slowed_by(slow, locked=True, highest_hz={"x": 1300e6}) == ["x never came to its 1300 MHz, only to 900"]
    assert slowed_by(slow, locked=False, highest_hz={"x": 1300e6}) == []
    assert slowed_by(slow, locked=True, highest_hz={"x": 910e6, "y": 1300e6}) == []
    fell = state({"gpu_hz/x": steps(1300e6, 900e6, at=45)}, timed=(1, 5))
    assert slowed_by(fell, locked=True, highest_hz={"x": 1300e6}) == ["x fell from 1300 to 900 MHz"]


def test_steal_is_cpus_a_second() -> None:
    assert steal_share(state({"steal_s/all": np.arange(60) * 0.03}, timed=(1, 5))) == pytest.approx(0.3, rel=0.06)
    assert steal_share(state({}, timed=(1, 5))) is None


def test_a_stretch_without_readings_is_found_wherever_it_lies() -> None:
    whole = state({"a/b": np.zeros(60)}, timed=(1, 5))
    assert unwatched_s(whole) == 0
    for rounds in (slice(0, 25), slice(35, 60)):  # the end is missing, the begin is
        assert unwatched_s(whole._replace(times=whole.times[rounds], values=whole.values[rounds])) > 2  # type: ignore[operator]
    hole = np.r_[0:20, 30:60]
    assert unwatched_s(whole._replace(times=whole.times[hole])) == pytest.approx(1.1)
    assert unwatched_s(whole._replace(times=whole.times[:0])) == pytest.approx(4)
    assert unwatched_s(whole._replace(rate_hz=None)) is None
    assert unwatched_s(whole._replace(windows={})) is None


def calls(length_ns: int, seconds: float) -> np.ndarray[Any, Any]:
    return np.arange(0, int(seconds * SECOND), length_ns, dtype=np.int64)


def test_what_the_sampler_costs_is_what_its_rounds_add_to_the_calls_they_meet() -> None:
    """Calls of 1 ms, end to end; those that meet one of ten rounds a second take 3 ms longer."""
    watched, rng = state({"a/b": np.zeros(100)}, timed=(0, 10)), np.random.default_rng(0)
    begun = calls(SECOND // 1000, 10)
    samples = (1e6 + rng.normal(0, 1e4, len(begun))).astype(np.int64) - 20_000
    meets = np.isin(begun // (SECOND // 1000) % 100, [0])
    samples[meets] += 3_000_000
    cost = observer_cost(watched, begun, np.minimum(samples, SECOND))
    assert cost is not None
    # of 10,000 calls 100 met: 0.3 s of the 9.8 + 0.3 s spent in calls
    assert cost.percent == pytest.approx(100 * 0.3 / 10.1, rel=0.05)
    assert 2.5 < cost.low < cost.percent < cost.high


def test_a_sampler_that_costs_nothing_is_not_blamed_for_slow_calls() -> None:
    watched, rng = state({"a/b": np.zeros(100)}, timed=(0, 10)), np.random.default_rng(1)
    begun = calls(SECOND // 1000, 10)
    samples = (rng.lognormal(0, 0.8, len(begun)) * 3e5).astype(np.int64)
    cost = observer_cost(watched, begun, samples)
    assert cost is not None
    assert cost.low < 0 < cost.high
    assert abs(cost.percent) < 1


def test_without_readings_the_cost_is_not_known() -> None:
    begun = calls(SECOND // 1000, 1)
    assert observer_cost(state({"a/b": np.zeros(1)}, timed=(0, 1)), begun, np.full(len(begun), 10**6)) is None
    assert observer_cost(state({"a/b": np.zeros(9)}, timed=(0, 1))._replace(rate_hz=None), begun, begun) is None


def observed(sampler: Sampler, begin: int, end: int) -> Any:
    found = sampler.stop()
    facts = {"names": found.names, "cpu_s": found.cpu_s, "rate_hz": 100.0, "windows_ns": {"timed": [begin, end]}}
    return state_of(facts, {"state_times_ns": found.times_ns, "state_values": found.values})


def test_the_sampler_sees_a_board_throttle_while_it_looks(tmp_path: Path) -> None:
    root = laid_out(tmp_path, SENSORS_5)
    with Sampler(str(root), rate_hz=100.0) as sampler:
        assert "power_w/VDD_IN" in sampler.names()
        wait_for_rounds(sampler, 5)
        (root / "sys/class/hwmon/hwmon1/oc1_event_cnt").write_text("3\n")
        (root / "sys/class/thermal/cooling_device0/cur_state").write_text("1\n")
        wait_for_rounds(sampler, 5)
        found = sampler.stop()
    begin, end = int(found.times_ns[1, 0]), int(found.times_ns[-2, 1])
    seen = observed(sampler, begin, end)
    assert slowed_by(seen, locked=False) == [
        "3 over-current or under-voltage events",
        "cpufreq-cpu0 cooled by slowing down",
    ]
    assert summary(seen)["power_w/VDD_IN"]["median"] == pytest.approx(4.9392)
    assert found.cpu_s is not None
    assert (np.diff(found.times_ns[:, 0]) > 0).all()


def wait_for_rounds(sampler: Sampler, count: int) -> None:
    """Until it woke up so often: Linux counts how often a process gave up its CPU by itself."""
    status = Path(f"/proc/{sampler.pid}/status")

    def woken() -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith("voluntary"))
        return int(line.split()[1])

    begin = woken()
    while woken() < begin + count:
        pass


def test_a_sampler_that_dies_leaves_what_is_known(tmp_path: Path) -> None:
    with Sampler(str(laid_out(tmp_path, SENSORS_5))) as sampler:
        names = sampler.names()
        sampler._process.kill()
        found = sampler.stop()
    assert found.names == names
    assert (len(found.values), found.cpu_s) == (0, None)
    assert sampler.stop() is found
