"""A run's record read back: what its reader needs is there and of its form, or one line says what is odd.

A record may be a stranger's, half edited, or of another version: no reader may end in a traceback for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from afpkd.errors import UserError
from afpkd.record import Json, read_record
from pipeline.report.wording import ROLES

MEASURED = (
    *("role", "device", "precision", "inputs", "verdict", "reasons", "rows", "latency_ms", "throughput_ips", "macs"),
    *("num_params", "size_bytes", "top1", "n", "threads", "scenario", "batch", "preset", "runtime", "machine"),
    *("protocol", "arch"),
)
"""What a profile is read for by reports."""
TRAINED = ("arch", "method", "num_params", "metrics", "selected_epoch", "epochs", "seed")
"""What a network's record is read for by reports."""
BUILT_FROM = ("arch", "num_classes", "in_channels", "image_size", "preprocessing", "data")
"""What makes a network again."""


def recorded(path: Path, *needed: str) -> Json:
    """The record at `path`; UserError where a key of `needed` is missing, or one that we know has another form."""
    return checked(read_record(path), path, *needed)


def checked(record: Json, path: Path, *needed: str, or_null: Container[str] = ()) -> Json:
    """The same for a record that was read already.

    or_null: those of `needed` that say null of what has no such thing, as a profile of any ONNX file has no role.
    """
    for key in needed:
        if key not in record or (record[key] is None and key in _NAMES and key not in or_null):
            raise _odd(path, f"'{key}' is missing")
    for key, (fits, form) in _FORMS.items():
        if key in record and not fits(record[key]):
            raise _odd(path, f"'{key}' is {str(record[key])[:40]!r}, not {form}")
    if "metrics" in needed and not _SCORES & record["metrics"].keys():
        raise _odd(path, f"'metrics' has none of {', '.join(sorted(_SCORES))}")
    return record


def _odd(path: Path, told: str) -> UserError:
    return UserError("E_RECORD", f"{path}: {told}: name another record, or delete it and run its stage again")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18  # NaN is not


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list_of(fits: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _maps_to(fits: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is_percent(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 100


def _are_scores(value: Any) -> bool:
    """Of a network, or of prompts, whose other metrics are no scores."""
    return isinstance(value, dict) and all(
        score is None or _is_percent(score) for key, score in value.items() if key.startswith(("test_", "heldout_"))
    )


def _are_rules(value: Any) -> bool:
    """Mean and standard deviation of each channel."""
    return isinstance(value, dict) and all(_is_list_of(_is_number, value.get(key)) for key in ("mean", "std"))


def _is_network(value: Any) -> bool:
    own = value.get("own") if isinstance(value, dict) else None
    return (
        isinstance(value, dict)
        and _is_text(value.get("arch"))
        and _is_list_of(_is_text, value.get("stages"))
        and (own is None or (_is_list_of(lambda row: _is_list_of(_is_number, row), own) and len(own) == 2))
    )


def _are_latencies(value: Any) -> bool:
    return (
        _maps_to(lambda ms: ms is None or (_is_number(ms) and ms > 0), value) and {"p50", "p90", "p99"} <= value.keys()
    )


def _are_checks(value: Any) -> bool:
    return _maps_to(_or_null(lambda check: isinstance(check, dict) and "ok" in check), value)


def _is_row(value: Any) -> bool:
    """With what the headline has of the same names, in the same forms."""
    return (
        isinstance(value, dict)
        and value.keys() >= _OF_A_ROW
        and all(fits(value[key]) for key, (fits, _) in _FORMS.items() if key in value and key != "rows")
    )


def _is_energy(value: Any) -> bool:
    joules = value.get("j_per_inference") if isinstance(value, dict) else math.nan
    return joules is None or (
        _is_number(joules)
        and _is_text(value.get("method"))
        and _is_number(value.get("rate_hz"))
        and all(_is_list_of(_is_text, value.get(key)) for key in ("rails", "blind_spots"))
    )


def _is_machine(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("processor"))
        and _is_text(value.get("system"))
        and _is_count(value.get("num_cpus"))
        and _or_null(_is_text)(value.get("gpu"))
        and _or_null(_is_table)(value.get("board"))
    )


def _is_protocol(value: Any) -> bool:
    """With the numbers of its preset, where it has one."""
    preset = value.get("preset", {}) if isinstance(value, dict) else None
    if not isinstance(preset, dict):
        return False
    least, warm_up = ("min_seconds", "min_count"), preset.get("warm_up")
    return not preset or (
        all(_is_number(preset.get(key)) for key in least)
        and isinstance(warm_up, dict)
        and all(_is_number(warm_up.get(key)) for key in (*least, "window", "tolerance", "max_seconds"))
    )


def _is_runtime(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"name", "version"} <= value.keys()
        and _is_count(value.get("threads_asked", 0))
        and _or_null(_is_table)(value.get("cuda"))
        and _is_table(engine := value.get("engine", {}))
        and _or_null(_is_count)(engine.get("device_memory_bytes"))
    )


_NAMES = {"role", "precision", "arch", "recipe", "config_digest"}
_OF_A_ROW = {"scenario", "batch", "latency_ms", "throughput_ips", "top1", "verdict", "reasons"}
_SCORES = {"test_top1_selected", "test_ap_selected"}
_HASHES = (lambda value: _maps_to(_is_text, value), "names with a hash each")
_TEXT, _TABLE, _COUNT = (_is_text, "a text"), (_is_table, "a table"), (_is_count, "a whole number")
_PERCENT = (_or_null(_is_percent), "a score in percent")
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "role": (lambda value: value is None or value in list(ROLES), f"one of {', '.join(ROLES)}"),
    **dict.fromkeys(("data", "device", "preset", "scenario", "finished_at"), _TEXT),
    **dict.fromkeys((_NAMES - {"role"}) | {"method", "git_commit"}, (_or_null(_is_text), "a text")),
    "verdict": (lambda value: value in ("VALID", "WARN", "INVALID"), "a verdict"),
    **dict.fromkeys(("inputs", "outputs"), _HASHES),
    **dict.fromkeys(("lineage", "folder"), _TABLE),
    "protocol": (_is_protocol, "a table with its preset"),
    "versions": (lambda value: _maps_to(_is_text, value), "names with a version each"),
    **dict.fromkeys(("num_classes", "in_channels", "n", "batch"), _COUNT),
    **dict.fromkeys(
        ("num_params", "size_bytes", "macs", "peak_memory_bytes", "selected_epoch", "epochs", "seed"),
        (_or_null(_is_count), "a whole number"),
    ),
    "threads": (_or_null(_is_count), "a number of threads"),
    "image_size": (lambda value: _is_list_of(_is_count, value) and len(value) == 2, "height and width"),
    "metrics": (_are_scores, "a table of scores in percent"),
    **dict.fromkeys(("top1", "ap"), _PERCENT),
    "top1_interval": (
        _or_null(lambda value: _is_list_of(_is_number, value) and len(value) == 2),
        "the two ends of an interval",
    ),
    "preprocessing": (_are_rules, "mean and std"),
    "network": (_is_network, "arch, stages and own"),
    "latency_ms": (_are_latencies, "p50, p90, p99 and other numbers"),
    "golden": (_are_checks, "the checks before and after"),
    **dict.fromkeys(("throughput_ips", "fps", "missed_percent", "sustainable_fps"), (_or_null(_is_number), "a number")),
    "energy": (_or_null(_is_energy), "joules with method, rails, rate_hz and blind_spots"),
    "memory": (lambda value: isinstance(value, dict) and _is_text(value.get("includes", "")), "bytes in words"),
    **dict.fromkeys(("reasons", "left_out"), (lambda value: _is_list_of(_is_text, value), "a list of texts")),
    "rows": (lambda value: _is_list_of(_is_row, value) and bool(value), "a list of rows as the first"),
    "machine": (_is_machine, "system, processor and num_cpus"),
    "runtime": (_is_runtime, "name, version, threads_asked, tables cuda and engine"),
}
"""Key of a record -> does a value fit, and what was expected."""
