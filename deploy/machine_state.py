"""The sampler's readings -> what the machine did while a network was timed, and what watching it cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json
from deploy.agent.nvml import SLOWED_BY
from deploy.agent.sensors import COUNTERS

_BELOW_LOCKED, _SHARE_BELOW = 0.98, 0.02  # protocol 4.12
_GAP = 5  # periods without a reading, beyond which a stretch counts as not watched


class State(NamedTuple):
    """Readings of one run. Times in ns of the device's monotonic clock."""

    names: list[str]
    times: NDArray[np.int64]
    """(N, 2): begin and end of each round of readings."""
    values: NDArray[np.float64]
    """(N, sensors)."""
    windows: dict[str, tuple[int, int]]
    rate_hz: float | None
    cpu_s: float | None

    def during(self, window: str) -> NDArray[np.bool_]:
        """Which rounds lie in a window; none where there was no such window."""
        begin, end = self.windows.get(window, (0, 0))
        return (self.times[:, 0] >= begin) & (self.times[:, 1] <= end)

    def series(self, prefix: str, window: str) -> dict[str, NDArray[np.float64]]:
        """Give the readings of each sensor whose name starts so, in a window; what it did not answer is left out."""
        return self._columns(prefix, self.during(window))

    def growths(self, prefix: str, window: str) -> dict[str, float]:
        """Give by how much each counter grew, from the last reading before a window to the first behind it."""
        if window not in self.windows:
            return {}
        begin, end = self.windows[window]
        first = max(0, int(np.searchsorted(self.times[:, 1], begin)) - 1)
        last = int(np.searchsorted(self.times[:, 0], end))
        columns = self._columns(prefix, slice(first, last + 1))
        return {name: float(column[-1] - column[0]) for name, column in columns.items() if len(column)}

    def _columns(self, prefix: str, rounds: Any) -> dict[str, NDArray[np.float64]]:
        found = {name: self.values[rounds, at] for at, name in enumerate(self.names) if name.startswith(prefix)}
        return {name: column[~np.isnan(column)] for name, column in found.items()}


def state_of(facts: Json, arrays: dict[str, NDArray[Any]]) -> State:
    """Put the agent's facts and arrays of one run together."""
    times = arrays.get("state_times_ns", np.zeros((0, 2), np.int64)).astype(np.int64)
    values = arrays.get("state_values", np.zeros((0, len(facts["names"]))))
    windows = {name: (begin, end) for name, (begin, end) in facts["windows_ns"].items()}
    return State(facts["names"], times, values, windows, facts["rate_hz"], facts["cpu_s"])


def summary(state: State) -> dict[str, Json]:
    """Give `least`, `median`, `most` of every sensor over the timed window, and the `growth` of every counter."""
    found: dict[str, Json] = {}
    for name, column in state.series("", "timed").items():
        if name.split("/")[0] not in COUNTERS and len(column):
            numbers = {"least": column.min(), "median": np.median(column), "most": column.max()}
            found[name] = {key: float(value) for key, value in numbers.items()}
    counters = {
        name: {"growth": growth} for kind in COUNTERS for name, growth in state.growths(f"{kind}/", "timed").items()
    }
    return {**found, **counters}


def slowed_by(
    state: State, window: str = "timed", *, locked: bool, highest_hz: Mapping[str, float] | None = None
) -> list[str]:
    """Name what slowed the machine down in a window.

    locked: its clocks should have stood at their highest, which `highest_hz` tells by GPU: one that was slow from the
    beginning on does not fall meanwhile.
    """
    found = []
    for kind, told in _EVENTS.items():
        growth = sum(state.growths(kind, window).values())
        if growth > 0:
            found.append(told.format(growth))
    for name, column in state.series("cooling/", window).items():
        if len(column) and column.max() > _before(state, window, name, column[0]):
            found.append(f"{name.partition(':')[2]} cooled by slowing down")
    for column in state.series("slowed_by/", window).values():
        bits = int(np.bitwise_or.reduce(column.astype(np.int64))) if len(column) else 0
        found += [f"the GPU reports {told}" for bit, told in SLOWED_BY.items() if bits & bit]
    for name, column in state.series("gpu_hz/", window).items() if locked else ():
        gpu = name.partition("/")[2]
        found += _below_locked(gpu, column / 1e6, (highest_hz or {}).get(gpu, 0.0) / 1e6)
    return found


def _below_locked(gpu: str, column: NDArray[np.float64], highest: float) -> list[str]:
    """Say so where a locked clock, in MHz, was below where it should stand."""
    most = column.max(initial=0.0)
    if len(column) and most < _BELOW_LOCKED * highest:
        return [f"{gpu} never came to its {highest:.0f} MHz, only to {most:.0f}"]
    if len(column) and np.mean(column < _BELOW_LOCKED * most) > _SHARE_BELOW:
        return [f"{gpu} fell from {most:.0f} to {column.min():.0f} MHz"]
    return []


_EVENTS = {
    "over_current/": "{:.0f} over-current or under-voltage events",
    "throttles/": "{:.0f} thermal throttle events of the CPU",
    "quota_throttled_s/": "a CPU quota (cgroup) held it back for {:.2f} s of CPU time",
}


def steal_share(state: State, window: str = "timed") -> float | None:
    """Give how many CPUs other guests of this machine's host took, on average; None where that is not told."""
    for growth in state.growths("steal_s/", window).values():
        begin, end = state.windows[window]
        return growth / ((end - begin) / 1e9)
    return None


def unwatched_s(state: State, window: str = "timed") -> float | None:
    """Give the longest stretch of a window without a reading, beyond a few periods; None where none was due."""
    if not state.rate_hz or window not in state.windows:
        return None
    begin, end = state.windows[window]
    inside = state.times[state.during(window), 0]
    longest = float(np.diff([begin, *inside, end]).max()) / 1e9
    return longest if longest > _GAP / state.rate_hz else 0.0


class Cost(NamedTuple):
    """By how much the sampler slowed the calls down, in percent of all time spent in calls, with a 95 % interval."""

    percent: float
    low: float
    high: float


def observer_cost(state: State, begun_ns: NDArray[np.int64], samples_ns: NDArray[np.int64]) -> Cost | None:
    """Compare the calls during which the sampler read with those half a period later, when it slept; None: no such.

    Both are met by what a call of their length meets by chance (long calls meet more of everything), so that their
    difference is the sampler's doing.
    """
    rounds = state.times[state.during("timed")]
    if len(rounds) < 2 or not state.rate_hz:
        return None
    half = round(0.5e9 / state.rate_hz)
    touched, spared = (samples_ns[_met(begun_ns, samples_ns, rounds + shift)] for shift in (0, half))
    if min(len(touched), len(spared)) < 2:
        return None
    scale = 100 * len(touched) / float(samples_ns.sum())
    difference = float(touched.mean() - spared.mean())
    error = float(np.sqrt(touched.var(ddof=1) / len(touched) + spared.var(ddof=1) / len(spared)))
    return Cost(scale * difference, scale * (difference - 1.96 * error), scale * (difference + 1.96 * error))


def _met(begun: NDArray[np.int64], samples: NDArray[np.int64], rounds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which calls overlap one of the rounds. Both are in order of time and do not overlap among themselves."""
    following = np.searchsorted(rounds[:, 1], begun, side="right")  # the first round that ends after the call's begin
    begins = np.append(rounds[:, 0], np.iinfo(np.int64).max)[following]
    met: NDArray[np.bool_] = begins < begun + samples
    return met


def _before(state: State, window: str, name: str, otherwise: float) -> float:
    """A sensor's lowest reading before a window, else `otherwise`: what rose in the warm-up has stayed up."""
    earlier = state.values[state.times[:, 1] < state.windows[window][0], state.names.index(name)]
    known = earlier[~np.isnan(earlier)]
    return float(known.min()) if len(known) else otherwise
