"""`agent.pyz profile BUNDLE`, on the device and with no host: the verb `profile` itself, and the record of it.

`--precision fp32 | fp16 | int8` (fp32), `--runtime auto | tensorrt | onnxruntime`, `--preset quick | standard`,
`--threads N` (1; 0 is the runtime's default), `--mode default | precise`, `--use-dla`, `--out FOLDER` (this one). The
record goes to stdout and to FOLDER/<role>-<precision>.json, samples and logits beside it (.npz).
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import PROTOCOL, probe, profiling
from .bundle import Bundle
from .errors import AgentError
from .store import sha256_of
from .supervisor import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    Json = dict[str, Any]

SCHEMA = "afpkd.profile-by-hand/1"

FACTS = ("memory", "runtime", "timing", "golden", "machine")
REST = ("protocol", "state", "file", "cross_check")
"""The whole answer of the verb `profile`, by which a host judges the record (`deploy.adopted`): FACTS stand in the
record as they do in a host's, REST and what was asked under `by_hand`."""

_FULL = {"min_seconds": 2, "min_count": 50, "window": 100, "tolerance": 0.02, "max_seconds": 30}
PRESETS: dict[str, Json] = {
    "quick": {
        "min_seconds": 5,
        "min_count": 200,
        "warm_up": {"min_seconds": 1, "min_count": 50, "window": 50, "tolerance": 0.02, "max_seconds": 5},
    },
    "standard": {"min_seconds": 30, "min_count": 2010, "warm_up": _FULL},
}
"""The host's presets of these names."""

SMALLEST_COUNTS = {50: 11, 90: 64, 99: 662}
"""Samples below which MLPerf's early-stopping rule bounds no such percentile: `deploy.statistics` derives them."""

_REASON = "made on the device alone, which does not judge load, drift and warm-up: `afpkd devices adopt` does on a host"
_OPTIONS = {"precision": "fp32", "runtime": "auto", "preset": "quick", "threads": "1", "mode": "default", "out": "."}
_BATCH = 1


def main(words: Sequence[str], output: IO[str]) -> int:
    """Measure what the words say, into `output`; exit code 0 where the golden check passed. AgentError."""
    try:
        record = profile_by_hand(*_parsed(words))
    except OSError as error:
        raise AgentError("E_DISK", f"{error.filename}: {error.strerror}") from None
    output.write(json.dumps(record, indent=1) + "\n")
    return 0 if all(check["ok"] for check in record["golden"].values()) else 1


def profile_by_hand(bundle: str, options: Json, use_dla: bool) -> Json:
    """Measure one file of a bundle in this process and write its record; a failed golden check is a result."""
    if options["preset"] not in PRESETS:
        raise AgentError("E_USAGE", "--preset wants one of {}".format(", ".join(PRESETS)))
    opened = Bundle(bundle)
    name = "{}-{}".format(opened.manifest["role"], options["precision"])
    folder = Path(options["out"])
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / f"{name}.npz"
    request = {
        "protocol": PROTOCOL,
        "bundle": bundle,
        "precision": options["precision"],
        "runtime": _runtime(options["runtime"]),
        "batch": _BATCH,
        "threads": int(options["threads"]),
        "preset": PRESETS[options["preset"]],
        "evaluate": True,
        "out": str(samples),
        "mode": options["mode"],
        "options": {"use_dla": True} if use_dla else {},
    }
    answer = profiling.profile(request)
    with np.load(samples) as arrays:
        row = _row(opened, request, answer, arrays["samples_ns"], arrays.get("logits"))
    record = {
        "schema": SCHEMA,
        **row,
        "rows": [row],
        "arch": opened.manifest["arch"],
        "preset": options["preset"],
        "peak_memory_bytes": answer["memory"]["peak_bytes"],
        **{key: answer[key] for key in FACTS},
        "by_hand": {
            **{key: answer[key] for key in REST},
            **{key: request[key] for key in ("runtime", "threads", "options")},
        },
        "inputs": {name: sha256_of(Path(bundle) / name) for name in ("manifest.json", answer["file"])},
        "outputs": {samples.name: sha256_of(samples)},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }
    write_json(folder / f"{name}.json", record)
    return record


def _row(bundle: Bundle, request: Json, answer: Json, samples_ns: Any, logits: Any) -> Json:
    """What the host's row holds, by the same names; nothing is VALID that no host judged."""
    manifest, labels = bundle.manifest, bundle.evaluation_labels()
    entry = next(entry for entry in manifest["files"] if entry["path"] == answer["file"])
    passed = all(check["ok"] for check in answer["golden"].values())
    return {
        "device": platform.node(),
        "role": manifest["role"],
        "precision": request["precision"],
        "mode": request["mode"],
        "scenario": "single_stream",
        "batch": _BATCH,
        "threads": answer["runtime"]["threads"],
        "clocks": "as-is",
        "power_mode": answer["machine"]["before"].get("power_mode"),
        "n": len(samples_ns),
        "latency_ms": {f"p{percent}": _percentile_ms(samples_ns, percent) for percent in SMALLEST_COUNTS},
        "throughput_ips": _BATCH * 1e9 / float(samples_ns.mean()) if len(samples_ns) else None,
        "macs": manifest["macs"]["macs"],
        "num_params": manifest["num_params"],
        "size_bytes": entry["size_bytes"],
        "top1": None if labels is None else 100 * float((logits.argmax(axis=1) == labels).mean()),
        "verdict": "WARN" if passed else "INVALID",
        "reasons": [_REASON] if passed else ["golden mismatch: this device computes something else"],
    }


def _percentile_ms(samples_ns: Any, percent: int) -> float | None:
    """The nearest-rank percentile; None where the samples cannot bound it."""
    if len(samples_ns) < SMALLEST_COUNTS[percent]:
        return None
    return float(np.sort(samples_ns)[-(-percent * len(samples_ns) // 100) - 1]) / 1e6


def _runtime(asked: str) -> str:
    """Settle `auto` as a host does. AgentError E_NO_RUNTIME with what to install."""
    if asked != "auto":
        return asked
    found = probe.runtimes()
    if not found["runtimes"]:
        raise AgentError("E_NO_RUNTIME", "; ".join(found["advice"]))
    name: str = found["runtimes"][0]
    return name


def _parsed(words: Sequence[str]) -> tuple[str, Json, bool]:
    """Give the bundle, the options as text, and whether a DLA is asked for."""
    rest, options = [word for word in words if word != "--use-dla"], dict(_OPTIONS)
    bundles = []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            bundles.append(word)
        elif word[2:] in options and rest:
            options[word[2:]] = rest.pop(0)
        else:
            raise AgentError("E_USAGE", _usage())
    if len(bundles) != 1 or not options["threads"].isdigit():
        raise AgentError("E_USAGE", _usage())
    return bundles[0], options, "--use-dla" in words


def _usage() -> str:
    known = " ".join(f"[--{name} {value}]" for name, value in _OPTIONS.items())
    return f"profile BUNDLE {known} [--use-dla]"
