"""What a device answered to `probe`, for a person: one fact a line."""

from __future__ import annotations

from collections.abc import Iterator

from afpkd.record import Json
from deploy.client import understood

_UNKNOWN = "not told"


def probe_text(facts: Json) -> str:
    """Lay out one device's facts; DeviceError where they are not of the form that the agent gives."""
    with understood(facts["device"]):
        lines = [facts["device"], *(f"  {name:<14} {value}" for name, value in _lines(facts))]
        return "\n".join([*lines, *(f"  ! {advice}" for advice in _warnings(facts))])


def _lines(facts: Json) -> Iterator[tuple[str, str]]:
    memory, mode = facts["memory"], facts["power_mode"]
    yield "board", facts["board"] or facts["machine"]
    yield "system", ", ".join(filter(None, [facts["system"], _named("L4T", facts["l4t"])])) or _UNKNOWN
    yield "JetPack", facts["jetpack"] or _UNKNOWN
    yield "CUDA", facts["cuda"] or "none"
    yield "TensorRT", facts["tensorrt"] or "none in this Python"
    yield "ONNX Runtime", facts["onnxruntime"] or "none in this Python"
    yield "Python", f"{facts['python']}, numpy {facts['numpy'] or 'none'}"
    yield "power mode", f"{mode['name'] or _UNKNOWN} (id {mode['id']})" if mode else _UNKNOWN
    for kind in ("cpu", "gpu"):
        for clock in facts["clocks"][kind]:
            yield f"{kind} clock", _clock(clock)
    if memory:
        yield "memory", f"{_gb(memory['available_bytes'])} of {_gb(memory['total_bytes'])} free"
        yield "swap", f"{_gb(memory['swap_free_bytes'])} of {_gb(memory['swap_total_bytes'])} free"
    yield "disk", f"{_gb(facts['disk_free_bytes'])} free"
    yield "temperatures", "  ".join(f"{zone} {value:.0f} °C" for zone, value in facts["temperatures_c"].items()) or "-"
    yield "on the GPU", ", ".join(f"{p['name']} ({p['pid']})" for p in facts["gpu_processes"]) or "nobody that is seen"
    yield "can run", ", ".join(facts["runtimes"]) or "nothing"
    yield "busy with", facts["holder"] or "nothing"


def _warnings(facts: Json) -> Iterator[str]:
    yield from facts["advice"]
    if facts["clocks_left_changed"]:
        yield f"clocks or power mode were left changed: afpkd devices restore {facts['device']} says more"


def _clock(clock: Json) -> str:
    now = "?" if clock["now_hz"] is None else f"{clock['now_hz'] / 1e6:.0f}"
    span = f"{clock['min_hz'] / 1e6:.0f} to {clock['max_hz'] / 1e6:.0f}"
    return f"{clock['name']} {now} MHz ({span}, {clock['governor'] or _UNKNOWN})"


def _named(name: str, value: str | None) -> str | None:
    return f"{name} {value}" if value else None


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
