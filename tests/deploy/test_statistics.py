from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from deploy.statistics import (
    Facts,
    drift_percent,
    latency_ms,
    nearest_rank,
    smallest_count,
    throughput_ips,
    top1_interval,
    top1_percent,
    verdict,
)

GOOD = Facts(
    n=300,
    min_count=200,
    steady=True,
    drift_percent=0.5,
    golden=[True, True],
    foreign_cpus=0.19,
    num_cpus=2,
    num_inputs=64,
)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=300), st.integers(1, 100))
def test_nearest_rank_is_the_inverse_of_the_empirical_distribution(samples: list[int], percentile: int) -> None:
    data = np.array(samples, dtype=np.int64)
    value = nearest_rank(data, percentile)
    assert 100 * (data <= value).sum() >= percentile * len(data)
    assert 100 * (data < value).sum() < percentile * len(data)


def test_nearest_rank_agrees_with_numpy_where_floats_are_exact() -> None:
    data = np.random.default_rng(0).permutation(1000).astype(np.int64)
    for percentile in (25, 50, 75, 100):
        assert nearest_rank(data, percentile) == np.percentile(data, percentile, method="inverted_cdf")


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        nearest_rank(np.array([], dtype=np.int64), 50)


# The minimum counts as MLPerf's rule gives them for t = 0, 1, 2, 10; 662 is the number in its own mlperf.conf.
@pytest.mark.parametrize(
    ("percentile", "num_above", "count"),
    [(90, 0, 44), (90, 1, 64), (90, 2, 81), (90, 10, 197), (95, 1, 130), (99, 0, 459), (99, 1, 662), (99, 10, 2010)],
)
def test_smallest_count_is_mlperfs(percentile: int, num_above: int, count: int) -> None:
    assert smallest_count(percentile, num_above=num_above) == count


@pytest.mark.parametrize("percentile", [50, 90, 95, 99])
def test_smallest_count_is_where_luck_gets_rarer_than_one_percent(percentile: int) -> None:
    count, share_above = smallest_count(percentile), 1 - percentile / 100
    assert binom.cdf(1, count, share_above) <= 0.01 < binom.cdf(1, count - 1, share_above)


@pytest.mark.parametrize(
    ("n", "known"), [(5, ""), (63, "p50"), (64, "p50 p90"), (661, "p50 p90"), (662, "p50 p90 p99")]
)
def test_percentiles_are_none_below_their_count(n: int, known: str) -> None:
    table = latency_ms(np.arange(1, n + 1, dtype=np.int64) * 1_000_000)
    assert [name for name, value in table.items() if value is not None] == known.split()


def test_latency_is_in_milliseconds_and_keeps_the_slow_calls() -> None:
    samples = np.full(1000, 2_000_000, dtype=np.int64)
    samples[:20] = 900_000_000
    assert latency_ms(samples) == {"p50": 2.0, "p90": 2.0, "p99": 900.0}


def test_throughput_counts_images_per_second_in_calls() -> None:
    assert throughput_ips(np.array([2_000_000, 6_000_000], dtype=np.int64), batch=4) == 1000.0
    assert throughput_ips(np.array([], dtype=np.int64), batch=1) is None


def test_drift_of_a_ramp_is_its_rise() -> None:
    assert drift_percent(np.linspace(950_000, 1_050_000, 5000).astype(np.int64)) == pytest.approx(10.0, abs=0.01)
    assert drift_percent(np.linspace(1_050_000, 950_000, 5000).astype(np.int64)) == pytest.approx(-10.0, abs=0.01)


def test_drift_is_not_a_spike_nor_a_pause() -> None:
    samples = np.random.default_rng(1).normal(1e6, 5e4, 5000).astype(np.int64)
    samples[4200:4700] *= 5
    assert abs(drift_percent(samples) or 99) < 1.0


def test_drift_needs_a_hundred_samples() -> None:
    assert drift_percent(np.arange(99, dtype=np.int64)) is None


def test_a_good_row_is_valid_without_a_reason() -> None:
    assert verdict(GOOD) == ("VALID", [])


@pytest.mark.parametrize(
    ("change", "expected", "reason"),
    [
        ({"golden": [False], "n": 0}, "INVALID", "golden mismatch: "),
        ({"golden": [True, False]}, "INVALID", "golden mismatch after"),
        ({"n": 199}, "INVALID", "too few samples: 199 of 200"),
        ({"drift_percent": -10.1}, "INVALID", "drift: latency moved by -10.1 %"),
        ({"drift_percent": 3.1}, "WARN", "drift: latency moved by +3.1 %"),
        ({"steady": False}, "WARN", "not steady"),
        ({"foreign_cpus": 0.21}, "WARN", "foreign load: other processes kept 0.2 of 2 CPUs"),
        ({"num_inputs": 63}, "WARN", "few inputs: 63"),
    ],
)
def test_each_fault_is_found_alone(change: dict[str, object], expected: str, reason: str) -> None:
    judged, reasons = verdict(replace(GOOD, **change))  # type: ignore[arg-type] # one field at a time, by name
    assert judged == expected
    assert len(reasons) == 1
    assert reasons[0].startswith(reason)


def test_what_is_not_known_is_not_held_against_a_row() -> None:
    unknown = replace(GOOD, steady=None, drift_percent=None, foreign_cpus=None, num_inputs=None)
    assert verdict(unknown) == ("VALID", [])


def test_invalid_keeps_the_warnings_beside_its_reasons() -> None:
    judged, reasons = verdict(replace(GOOD, n=10, steady=False))
    assert judged == "INVALID"
    assert len(reasons) == 2


def test_top1_is_percent_of_right_classes() -> None:
    assert top1_percent(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 75.0
    labels = np.zeros(1000, np.int64)
    assert top1_percent(np.where(np.arange(1000) < 306, 0, 1), labels) == 30.6  # not 30.599999999999998
    with pytest.raises(ValueError, match="3 predictions for 2 labels"):
        top1_percent(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize(("num_right", "num"), [(0, 10), (9, 10), (72, 80), (8312, 10_000), (50, 50)])
def test_the_interval_of_an_accuracy_is_wilsons(num_right: int, num: int) -> None:
    """Its bounds p solve |share - p| = z sqrt(p (1 - p) / n)."""
    share, z = num_right / num, NormalDist().inv_cdf(0.975)
    for bound in top1_interval(num_right, num):
        p = bound / 100
        assert abs(share - p) == pytest.approx(z * (p * (1 - p) / num) ** 0.5, abs=1e-9)
    low, high = top1_interval(num_right, num)
    assert 0 <= low <= 100 * share <= high <= 100
    assert low < high
