"""Facts -> verdict: each fault alone, together, and at its threshold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy.series import Drift
from deploy.verdict import Facts, verdict

GOOD = Facts(
    n=300,
    min_count=200,
    steady=True,
    drift=Drift(0.5, 0.1, 0.9),
    wander_percent=4.9,
    num_effective=50.0,
    golden=[True, True],
    foreign_cpus=0.19,
    num_cpus=2,
    num_inputs=64,
)


def test_a_good_row_is_valid_without_a_reason() -> None:
    assert verdict(GOOD) == ("VALID", [])
    assert verdict(replace(GOOD, clocks_free=True)) == ("VALID", [])  # nobody asked for anything else


@pytest.mark.parametrize(
    ("change", "expected", "reason"),
    [
        ({"golden": [False], "n": 0}, "INVALID", "golden mismatch: "),
        ({"golden": [True, False]}, "INVALID", "golden mismatch after"),
        ({"failed": "batch 8: no", "n": 0}, "INVALID", "failed: batch 8: no"),
        ({"n": 199}, "INVALID", "too few samples: 199 of 200"),
        ({"drift": Drift(-10.1, -12, -8)}, "INVALID", "drift: latency moved by -10.1 %"),
        ({"drift": Drift(3.1, 1, 5)}, "WARN", "drift: latency moved by +3.1 %"),
        ({"drift": Drift(3.1, 1, 5), "wander_percent": 6.0}, "WARN", "drift: latency moved by +3.1 %"),
        ({"wander_percent": 5.1}, "WARN", "unsteady: the medians of the run's tenths lie 5.1 % apart"),
        (
            {"drift": Drift(1.0, 0.8, 1.2), "wander_percent": 20.0},
            "WARN",
            "unsteady: the medians of the run's tenths lie 20",
        ),
        ({"drift": Drift(19, -4, 42), "wander_percent": 19.0}, "WARN", "unsteady: the medians"),
        ({"wander_percent": 25.1}, "INVALID", "unsteady: the medians of the run's tenths lie 25.1 % apart"),
        ({"num_effective": 49.9}, "WARN", "dependent samples: 300 calls are worth 50 independent ones, 50 are wanted"),
        ({"steady": False}, "WARN", "not steady"),
        ({"not_finite": 1}, "INVALID", "not finite: 1 outputs seen during the timing"),
        ({"cross_check_percent": -5.1}, "WARN", "cross-check: trtexec's GPU time is -5.1 % from ours"),
        ({"foreign_cpus": 0.21}, "WARN", "foreign load: other processes kept 0.2 of 2 CPUs"),
        ({"gpu_load_percent": 45.0}, "WARN", "foreign load: the GPU was 45 % busy before anything was loaded"),
        ({"gpu_processes": ["detector (4242)"]}, "WARN", "foreign load: detector (4242) has the GPU open"),
        ({"num_inputs": 63}, "WARN", "few inputs: 63"),
        ({"clocks": "as-is: mode 2"}, "WARN", "clocks not as asked: as-is was asked for, but mode 2"),
        ({"clocks": "locked", "clocks_free": True}, "WARN", "clocks not as asked: locked was reported, but lowest"),
        ({"clocks": "locked", "slowed_by": ["x"]}, "INVALID", "throttled: x"),
        ({"remarks": ["over budget: x"]}, "WARN", "over budget: x"),
    ],
)
def test_each_fault_is_found_alone(change: dict[str, object], expected: str, reason: str) -> None:
    # what drifts is not told as wandering too
    drifting = {"drift": Drift(0.5, -0.1, 0.9)} if "wander_percent" in change and "drift" not in change else {}
    judged, reasons = verdict(replace(GOOD, **{**drifting, **change}))  # type: ignore[arg-type] # by name
    assert judged == expected
    assert len(reasons) == 1
    assert reasons[0].startswith(reason)


def test_what_is_not_known_is_not_held_against_a_row() -> None:
    unknown = replace(
        GOOD, steady=None, drift=None, wander_percent=None, num_effective=None, foreign_cpus=None, num_inputs=None
    )
    assert verdict(unknown) == ("VALID", [])


def test_invalid_keeps_the_warnings_beside_its_reasons() -> None:
    judged, reasons = verdict(replace(GOOD, n=10, steady=False))
    assert judged == "INVALID"
    assert len(reasons) == 2
