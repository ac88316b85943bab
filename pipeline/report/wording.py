"""How the report says a role, a verdict, a number, a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from afpkd.names import in_words

ROLES = {"teacher": "teacher", "student": "distilled", "undistilled": "undistilled"}  # on disk -> in words
VERDICTS = {  # from good to bad
    "VALID": "may be quoted",
    "WARN": "may be quoted with its reasons beside it",
    "INVALID": "must not be used",
}
NONE = "-"


def metric_words(metrics: Iterable[str]) -> str:
    """Name the one metric; several that do not compare are only called accuracy."""
    names = {in_words(metric) for metric in metrics}
    return names.pop() if len(names) == 1 else "accuracy"


def command(variables: Mapping[str, str], *targets: str, device: str = "local") -> str:
    """Write the make command with these variables; the device only where it is not make's default."""
    given = {**variables, **({"DEVICE": device} if device != "local" else {})}
    return shlex.join(["make", *targets, *(f"{name}={value}" for name, value in given.items())])


def percent(value: float | None) -> str:
    """Write an accuracy in percent, or `-`."""
    return NONE if value is None else f"{value:.2f} %"


def milliseconds(value: float | None) -> str:
    """Write a latency to the microsecond, or `-`."""
    return NONE if value is None else f"{value:,.3f}"


def si(value: float | None, unit: str = "") -> str:
    """Write a count with three digits and a decimal prefix (k, M, G), or `-`."""
    if value is None:
        return NONE
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # which three digits round up
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def times(ratio: float, above: str, below: str, equal: str) -> tuple[str, str]:
    """Say a ratio as `2.93×` and a word for its direction."""
    if f"{ratio:.2f}" == "1.00":
        return "1.00×", equal
    return (f"{ratio:,.2f}×", above) if ratio > 1 else (f"{1 / ratio:,.2f}×", below)


def signed(points: float) -> str:
    """Write a difference with its sign."""
    return f"{points:+.2f}".replace("-", "−")


def count(value: float | None, digits: int = 0) -> str:
    """Write a number with its thousands apart, or `-`."""
    return NONE if value is None else f"{value:,.{digits}f}"


def span(low: float | None, high: float | None, digits: int) -> str:
    """Write an interval, or nothing where it is not known."""
    return "" if low is None or high is None else f"{low:,.{digits}f}–{high:,.{digits}f}"


def method_words(record: Mapping[str, Any]) -> str:
    """How a role's record says that it was trained."""
    if not record:
        return NONE
    method: str | None = record["method"]
    return {None: "foreign weights", "none": "trained alone"}.get(method) or str(method)


def judged(record: Mapping[str, Any]) -> str:
    """How fast, and what to think of it: a profile in a line."""
    p50 = record["latency_ms"]["p50"]
    timed = "not timed" if p50 is None else f"p50 {p50:.2f} ms"
    return f"{timed}, {record['verdict']}{''.join(f'; {reason}' for reason in record['reasons'])}"
