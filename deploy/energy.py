"""Power readings of a run -> joules an inference, and what they do not see (protocol 4.13). Pure functions."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json
from deploy.machine_state import State

LEAST_SECONDS, LEAST_SAMPLES = 10.0, 100
_TOTALS = ("VDD_IN", "POM_5V_IN", "5V_IN", "VIN")
"""Rails that feed the whole module, by generation; Thor's VIN feeds its carrier board, too."""

_PART_OF_ANOTHER = ("VDDQ_VDD2_1V8AO",)
"""AGX Orin's: fed by VIN_SYS_5V0, which is counted."""

_JETSON = "the sensors sit on the module's input: the carrier board, its peripherals and the power supply are not seen"
_BOARD = "the sensor sits on the board's input: carrier board and peripherals are counted, the power supply is not seen"
_SLOW = "sensors average over milliseconds and are read {:.0f} times a second: what is shorter is only seen on average"
_CARD = "the card alone: the host's processor, memory and power supply are not seen"
_PACKAGE = "processor packages (and memory where it has a counter) alone: a model of the processor's own, not a meter"


class _Source(NamedTuple):
    """Where power comes from: its sensors, whether they count energy, in words, and what it does not see."""

    names: list[str]
    counts: bool
    method: str
    blind: str


def energy(state: State, num_inferences: int) -> Json | None:
    """Give joules an inference of the timed window; None where the machine tells no power.

    `j_per_inference`: net of the idle power read before the load; `j_gross_per_inference`: all of it. Both None, with
    `why_null`, under 10 s or 100 readings. `method`, `rails`, `rate_hz`: how; `blind_spots`: what is not in it.
    """
    source = _source(state.names)
    if source is None:
        return None
    begin, end = state.windows.get("timed", (0, 0))
    seconds, num_samples = (end - begin) / 1e9, int(state.during("timed").sum())
    rate = num_samples / seconds if seconds else 0.0
    watts, idle = (_mean_watts(state, source, window) for window in ("timed", "idle"))
    why = _why_null(seconds, num_samples, watts, num_inferences)
    gross = None if why or watts is None else watts * seconds / num_inferences
    net = None if gross is None or watts is None or idle is None else gross * (watts - idle) / watts
    return {
        "j_per_inference": net,
        "j_gross_per_inference": gross,
        "why_null": why or (None if net is not None else "no idle power was read before the load"),
        "mean_w": watts,
        "idle_w": idle,
        "rails": [name.partition("/")[2] for name in source.names],
        "method": source.method,
        "rate_hz": rate,
        "num_samples": num_samples,
        "window_s": seconds,
        "blind_spots": [source.blind, _SLOW.format(rate), "idle power is what the machine took just before, once"],
    }


def _source(names: list[str]) -> _Source | None:
    """The widest there is: a rail that feeds everything, the sum of the others, a card, processor packages."""
    rails = [name for name in names if name.startswith("power_w/")]
    totals = [name for total in _TOTALS for name in rails if name == f"power_w/{total}"]
    cards = [name for name in rails if re.fullmatch(r"power_w/gpu\d+", name)]
    parts = [name for name in rails if name.partition("/")[2] not in _PART_OF_ANOTHER and name not in cards]
    packages = [name for name in names if re.fullmatch(r"energy_j/intel-rapl:\d+(:\d+)?:(package-\d+|dram)", name)]
    if totals:
        rail = totals[0].partition("/")[2]
        fed, blind = ("whole board", _BOARD) if rail == "VIN" else ("module", _JETSON)
        return _Source(totals[:1], False, f"rail {rail}, which feeds the {fed}", blind)
    if parts:
        return _Source(parts, False, f"sum of {len(parts)} rails: no rail feeds the whole module", _JETSON)
    if cards:
        return _Source(cards, False, "NVML's power of the card", _CARD)
    if packages:
        return _Source(packages, True, "RAPL's energy counters", _PACKAGE)
    return None


def _mean_watts(state: State, source: _Source, window: str) -> float | None:
    """Mean power over a window; None without two readings of every sensor there, or where a counter wrapped."""
    inside = state.during(window)
    columns = state.values[inside][:, [state.names.index(name) for name in source.names]]
    times = state.times[inside, 0]
    whole = ~np.isnan(columns).any(axis=1)
    columns, times = columns[whole], times[whole]
    if len(columns) < 2:
        return None
    return _counted_watts(columns, times) if source.counts else float(columns.sum(axis=1).mean())


def _counted_watts(joules: NDArray[np.float64], times: NDArray[np.int64]) -> float | None:
    growth = joules[-1] - joules[0]
    return None if (growth < 0).any() else float(growth.sum() / ((times[-1] - times[0]) / 1e9))


def _why_null(seconds: float, num_samples: int, watts: float | None, num_inferences: int) -> str | None:
    if seconds < LEAST_SECONDS:
        return f"timed for {seconds:.1f} s, {LEAST_SECONDS:g} s are needed"
    if num_samples < LEAST_SAMPLES:
        return f"{num_samples} readings, {LEAST_SAMPLES} are needed"
    if watts is None or num_inferences == 0:
        return "no sensor of power answered all through"
    return None
