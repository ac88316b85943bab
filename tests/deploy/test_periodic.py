"""Frames at a fixed rate on a scripted clock: what a closed loop hides."""

from __future__ import annotations

import pytest

from deploy.agent.periodic import Frames, largest_rate, play


class Camera:
    """A clock that moves when a network infers and when the process sleeps, late by `wake_ns`."""

    def __init__(self, costs_ms: list[float], wake_ns: int = 0) -> None:
        self.now, self.costs, self.wake_ns, self.seen = 0, costs_ms, wake_ns, list[int]()

    def infer(self, image: int) -> None:
        self.seen.append(image)
        self.now += round(self.costs[(len(self.seen) - 1) % len(self.costs)] * 1e6)

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9) + self.wake_ns

    def play(self, fps: float, seconds: float) -> Frames:
        self.now, self.seen = 0, []
        return play(self.infer, [7, 8, 9], fps=fps, seconds=seconds, clock=lambda: self.now, sleep=self.sleep)


def in_ms(frames: Frames) -> list[float]:
    return [round(latency / 1e6, 3) for latency in frames.latencies_ns]


def test_a_fast_network_answers_each_frame_in_its_own_time() -> None:
    camera = Camera([2.0], wake_ns=100_000)
    frames = camera.play(100, 0.05)
    assert in_ms(frames) == [2.0, 2.1, 2.1, 2.1, 2.1]  # what waking up took is part of it
    assert (frames.missed, frames.sustained) == (0, True)
    assert camera.seen == [7, 8, 9, 7, 8]


def test_one_slow_call_makes_the_frames_behind_it_late() -> None:
    """A closed loop would tell 25 ms once and 2 ms four times."""
    frames = Camera([25.0, 2.0, 2.0, 2.0, 2.0]).play(100, 0.05)
    assert in_ms(frames) == [25.0, 17.0, 9.0, 2.0, 2.0]
    assert frames.missed == 2
    assert not frames.sustained


def test_a_rate_above_the_networks_grows_a_queue_and_ends_when_hopeless() -> None:
    frames = Camera([20.0]).play(100, 1.0)
    assert in_ms(frames)[:3] == [20.0, 30.0, 40.0]
    assert len(frames.latencies_ns) == 100
    assert frames.missed == 100
    hopeless = Camera([500.0]).play(100, 1.0)
    assert len(hopeless.latencies_ns) < 10
    long = Camera([500.0]).play(100, 600.0)
    assert len(long.latencies_ns) == 62  # half a minute behind, at 490 ms a frame


def test_a_deadline_is_met_to_the_nanosecond() -> None:
    assert Camera([10.0]).play(100, 0.05).missed == 0
    assert Camera([10.001]).play(100, 0.05).missed == 5


@pytest.mark.parametrize("cost_ms", [0.2, 4.0, 90.0])
def test_the_largest_rate_is_found_to_two_percent(cost_ms: float) -> None:
    camera = Camera([cost_ms])
    trials, found = largest_rate(lambda fps: camera.play(fps, 2.0), 1e3 / cost_ms)
    assert found is not None
    assert 1 / 1.02 <= found * cost_ms / 1e3 <= 1.0
    assert all(trial.sustained == (trial.fps <= found) for trial in trials)
    assert len(trials) < 12


def test_what_a_closed_loop_promises_may_be_far_too_much() -> None:
    """Nine calls of 1 ms and one of 200: the median promises 1,000 frames a second; 5 hold."""
    camera = Camera([1.0] * 9 + [200.0])
    _, found = largest_rate(lambda fps: camera.play(fps, 10.0), 1000.0)
    assert found == pytest.approx(5.0, rel=0.03)


def test_a_network_that_holds_no_rate_has_none() -> None:
    camera = Camera([1500.0])
    trials, found = largest_rate(lambda fps: camera.play(fps, 5.0), 200.0)
    assert found is None
    assert [trial.fps for trial in trials] == [20.0, 2.0, 1.0]


def test_one_missed_frame_in_a_hundred_is_sustained_and_two_are_not() -> None:
    from array import array

    assert Frames(30, array("q", range(100)), 1).sustained
    assert not Frames(30, array("q", range(100)), 2).sustained
    assert not Frames(30, array("q", range(99)), 1).sustained
