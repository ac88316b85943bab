"""Under which conditions a file was measured: latencies of two compare only where these agree."""

from __future__ import annotations

from collections.abc import Mapping

from afpkd.record import Json
from pipeline.report.wording import NONE

Conditions = Mapping[str, str]
"""By name, in words."""


def conditions_of(profile: Json) -> Conditions:
    """Give those of a profile's quoted row. What an older record does not tell is unknown, and equal to the same."""
    runtime, machine = profile["runtime"], profile["machine"]
    told = {name: profile.get(name) for name in ("scenario", "batch", "threads", "preset")}
    told |= {"runtime": f"{runtime['name']} {runtime['version']}", "clocks": clocks_of(profile)}
    told["power mode"] = profile.get("power_mode")
    told |= {"processor": machine["processor"], "CPUs": machine["num_cpus"], "GPU": _gpu(runtime.get("cuda") or {})}
    return {name: NONE if value is None else str(value) for name, value in told.items()}


def _gpu(cuda: Json) -> str | None:
    """What CUDA tells of the GPU that ran the file, without its software; None on a CPU."""
    told = (("compute capability", "compute_capability"), ("SMs", "num_sms"))
    return " ".join(f"{words} {cuda[key]}" for words, key in told if key in cuda) or None


def clocks_of(row: Json) -> str:
    """Give what became of a row's clocks: `as-is`, `locked`, `mode:2`; why they are as they were is in its reasons."""
    return str(row.get("clocks") or "as-is").partition(": ")[0]


def clock_words(row: Json) -> str:
    """Say under which clocks and, on a Jetson, in which power mode a row was made."""
    mode = row.get("power_mode")
    return f"clocks {clocks_of(row)}" + (f", power mode {mode}" if mode else "")


def unlike(one: Conditions, other: Conditions) -> str:
    """Say in which conditions two differ: `threads 4 against 1`; empty where in none."""
    return ", ".join(f"{name} {value} against {other[name]}" for name, value in one.items() if value != other[name])
