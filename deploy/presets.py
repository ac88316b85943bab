"""How long to measure (measuring protocol 4.4, 4.5): three presets, each a full statement of the rules it runs by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afpkd.errors import UserError
from afpkd.names import look_up
from deploy.agent.measuring import BATCHES, MOST_SECONDS, OFFLINE, PERIODIC, RATES_FPS, SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """Not timed: until both minima have passed and the medians of the last 3 windows agree within `tolerance`."""

    min_seconds: float
    min_count: int
    window: int
    """Calls a window."""
    tolerance: float
    """Share by which the largest of the three medians may exceed the smallest."""
    max_seconds: float
    """Given up by then: the row is marked as not steady."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Timed: until `min_seconds` have passed AND `min_count` samples are there."""

    name: str
    min_seconds: float
    min_count: int
    warm_up: WarmUp
    repeats: int = 1
    """Fresh processes a file: a single one hides what differs from process to process."""


def check_time(preset: Preset, scenarios: Sequence[str], device: str, max_seconds: float) -> None:
    """UserError where not even the fastest network could be measured within the device's limit for a job."""
    brief = min(MOST_SECONDS, SHARE * preset.min_seconds)
    least = preset.warm_up.min_seconds + preset.min_seconds
    least += len(RATES_FPS) * preset.min_seconds + brief if PERIODIC in scenarios else 0
    least += len(BATCHES) * brief if OFFLINE in scenarios else 0
    if least > max_seconds:
        raise UserError(
            "E_MEASURE",
            f"device {device} ends a job after {max_seconds:g} s, preset {preset.name} takes {least:g} s at least for "
            f"{', '.join(scenarios)}: raise its max_seconds, or take a shorter preset or fewer scenarios",
        )


def find_preset(name: str) -> Preset:
    """Give the preset called `name`; UserError with the known names where there is none."""
    return look_up("E_UNKNOWN_NAME", "preset", name, _PRESETS)


_FULL = WarmUp(min_seconds=2, min_count=50, window=100, tolerance=0.02, max_seconds=30)
_SHORT = WarmUp(min_seconds=1, min_count=50, window=50, tolerance=0.02, max_seconds=5)

_PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="quick", min_seconds=5, min_count=200, warm_up=_SHORT),  # p50 and p90
        # p99 with 10 samples above the bound
        Preset(name="standard", min_seconds=30, min_count=2_010, warm_up=_FULL, repeats=3),
        # MLPerf's own duration and count
        Preset(name="mlperf", min_seconds=600, min_count=24_576, warm_up=_FULL, repeats=3),
    )
}
