"""Series in order: what they are worth, whether they drift; against distributions and trends that are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import coverage
from deploy.series import bootstrap_intervals, drift, num_effective, wander_percent

Samples = NDArray[np.int64]


def noise(seed: int, count: int = 5000, spread: float = 0.05) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(1.0, spread, count)


def ns(latencies_ms: NDArray[np.float64]) -> Samples:
    return (latencies_ms * 1e6).astype(np.int64)


def test_independent_samples_are_worth_their_number() -> None:
    worth = [num_effective(ns(noise(seed)), 1_000_000) / 5000 for seed in range(40)]
    assert np.median(worth) > 0.9
    assert min(worth) > 0.5


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_an_autoregression_is_worth_what_theory_says(rho: float) -> None:
    """Of a Gaussian one at its median, the indicator's correlation at lag k is 2 / pi arcsin(rho^k)."""
    correlations = 2 / np.pi * np.arcsin(rho ** np.arange(1, 500))
    expected = 1 / (1 + 2 * correlations.sum())
    draw = coverage.autoregressive(rho)
    worth = [num_effective(ns(draw(np.random.default_rng(seed), 20_000)), 500_000) / 20_000 for seed in range(20)]
    assert np.mean(worth) == pytest.approx(expected, rel=0.15)


def test_what_never_changes_is_worth_its_number() -> None:
    assert num_effective(np.full(100, 7), 7) == 100
    assert num_effective(np.array([1, 2, 3]), 2) == 3


def test_alternating_samples_are_worth_no_more_than_their_number() -> None:
    assert num_effective(np.arange(1000) % 2, 0) == 1000


def test_the_bootstrap_keeps_blocks_together_and_gives_the_same_twice() -> None:
    """The mean of blocks: with 20 runs of equal calls its interval is as wide as that of 20 numbers, not of 2,000."""
    samples = np.repeat(np.random.default_rng(1).permutation(20), 100).astype(np.int64)
    low, high = bootstrap_intervals(samples, [50], {50: 20.0}, level=0.95)[50]
    assert high - low >= 5
    assert bootstrap_intervals(samples, [50], {50: 20.0}, level=0.95)[50] == (low, high)
    single = bootstrap_intervals(samples, [50], {50: 2000.0}, level=0.95)[50]
    assert single[1] - single[0] < (high - low) / 2
    assert bootstrap_intervals(samples, [], {}, level=0.95) == {}


def test_the_bootstraps_ends_are_the_percentile_of_samples_and_in_order() -> None:
    samples = ns(coverage.autoregressive(0.9)(np.random.default_rng(4), 2010))
    found = bootstrap_intervals(samples, [50, 90], {50: 200.0, 90: 200.0}, level=0.95)
    assert found[50][0] < np.percentile(samples, 50) < found[50][1] < found[90][1]
    assert found[90][0] < np.percentile(samples, 90) < found[90][1]


@pytest.mark.parametrize("percent", [10.0, -10.0])
def test_drift_of_a_ramp_is_its_rise_for_certain(percent: float) -> None:
    found = drift(np.linspace(1e6 * (1 - percent / 200), 1e6 * (1 + percent / 200), 5000).astype(np.int64))
    assert found is not None
    assert found.percent == pytest.approx(percent, abs=0.01)
    assert found.certain
    assert found.low <= found.percent <= found.high


def test_a_ramp_under_noise_is_certain_and_inside_its_interval() -> None:
    ramp = np.linspace(0.94, 1.06, 5000)
    for seed in range(10):
        found = drift(ns(noise(seed, spread=0.1) * ramp))
        assert found is not None
        assert found.certain
        assert found.low < 12 < found.high


def test_noise_that_wanders_is_no_drift_but_is_seen_to_wander() -> None:
    """Neighbours' load comes and goes within a run of seconds: some windows are slow, no trend is."""
    waves = 1 + 0.1 * np.sin(np.linspace(0, 4 * np.pi, 5000))
    samples = ns(noise(0) * waves)
    found = drift(samples)
    assert found is not None
    assert not found.certain
    assert wander_percent(samples) == pytest.approx(19, abs=3)


def test_slow_wandering_is_rarely_taken_for_drift() -> None:
    """A random walk that returns, correlated over a tenth of the run: without the stretch a third would be."""
    draw = coverage.autoregressive(0.998)
    found = [drift(ns(1 + 0.1 * draw(np.random.default_rng(seed), 5000))) for seed in range(60)]
    assert sum(one is not None and one.certain for one in found) <= 3


def test_drift_is_not_a_spike_nor_a_pause() -> None:
    samples = ns(noise(1))
    samples[4200:4700] *= 5
    found = drift(samples)
    assert found is not None
    assert abs(found.percent) < 1.0
    assert not found.certain


def test_a_step_is_seen_to_wander() -> None:
    samples = ns(noise(2) * np.repeat([1.0, 1.3], 2500))
    assert (wander_percent(samples) or 0) > 20


def test_a_series_that_stands_still_neither_drifts_nor_wanders() -> None:
    found = drift(np.full(500, 10**6))
    assert found == (0, 0, 0)
    assert found is not None
    assert not found.certain
    assert wander_percent(np.full(500, 10**6)) == 0


def test_drift_and_wander_need_a_hundred_samples() -> None:
    assert drift(np.arange(99, dtype=np.int64)) is None
    assert wander_percent(np.arange(99, dtype=np.int64)) is None
