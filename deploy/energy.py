"""Power readings of a run -> joules an inference, and what they do not see (protocol 4.13). Pure functions."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json
from deploy.machine_state import State

LEAST_SECONDS, LEAST_SAMPLES = 10.0, 100
_IDLE_READ = 0.9
"""Share of the idle rounds in which power must have been read: what is left may have been another idle."""

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


class _Power(NamedTuple):
    """Mean power over a window, if it is known; how often it was read whole, in how many rounds."""

    watts: float | None
    num_readings: int
    num_rounds: int


def energy(state: State, num_inferences: int) -> Json | None:
    """Give joules an inference of the timed window; None where the machine tells no power.

    `j_per_inference`: net of the idle power read before the load; `j_gross_per_inference`: all of it. Both None, with
    `why_null`, under 10 s or 100 readings; net alone where idle was not read all through, or took no less. `method`,
    `rails`, `rate_hz`: how; `blind_spots`: what is not in it.
    """
    source = _source(state.names)
    if source is None:
        return None
    begin, end = state.windows.get("timed", (0, 0))
    seconds = (end - begin) / 1e9
    load, idle = (_power(state, source, window) for window in ("timed", "idle"))
    rate = load.num_readings / seconds if seconds else 0.0
    why = _why_null(seconds, load, num_inferences)
    why_not_net = why or _why_not_net(load, idle)
    gross = None if why else _joules(load, seconds, num_inferences)
    net = None if why_not_net or gross is None else gross - _joules(idle, seconds, num_inferences)
    return {
        "j_per_inference": net,
        "j_gross_per_inference": gross,
        "why_null": why_not_net,
        "mean_w": load.watts,
        "idle_w": idle.watts,
        "rails": [name.partition("/")[2] for name in source.names],
        "method": source.method,
        "rate_hz": rate,
        "num_samples": load.num_readings,
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


def _power(state: State, source: _Source, window: str) -> _Power:
    """Read a window; watts None without two readings of every sensor there, or where a counter wrapped."""
    inside = state.during(window)
    columns = state.values[inside][:, [state.names.index(name) for name in source.names]]
    times = state.times[inside, 0]
    whole = ~np.isnan(columns).any(axis=1)
    columns, times = columns[whole], times[whole]
    watts = None
    if len(columns) >= 2:
        watts = _counted_watts(columns, times) if source.counts else float(columns.sum(axis=1).mean())
    return _Power(watts, len(columns), int(inside.sum()))


def _joules(power: _Power, seconds: float, num_inferences: int) -> float:
    assert power.watts is not None, "what was not read has a reason"
    return power.watts * seconds / num_inferences


def _counted_watts(joules: NDArray[np.float64], times: NDArray[np.int64]) -> float | None:
    growth = joules[-1] - joules[0]
    return None if (growth < 0).any() else float(growth.sum() / ((times[-1] - times[0]) / 1e9))


def _why_null(seconds: float, load: _Power, num_inferences: int) -> str | None:
    if seconds < LEAST_SECONDS:
        return f"timed for {seconds:.1f} s, {LEAST_SECONDS:g} s are needed"
    if load.num_readings < LEAST_SAMPLES:
        return f"{load.num_readings} readings, {LEAST_SAMPLES} are needed"
    if load.watts is None or num_inferences == 0:
        return "no sensor of power answered all through"
    return None


def _why_not_net(load: _Power, idle: _Power) -> str | None:
    if idle.watts is None or load.watts is None:
        return "no idle power was read before the load"
    if idle.num_readings < _IDLE_READ * idle.num_rounds:
        return f"idle power was read in {idle.num_readings} of {idle.num_rounds} rounds alone"
    if idle.watts >= load.watts:
        return f"the idle machine took {idle.watts:.3g} W, under load {load.watts:.3g} W: no less"
    return None
