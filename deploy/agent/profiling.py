"""The verb `profile`: golden check, warm-up, timed loop, golden check, accuracy; facts as JSON, arrays as .npz."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import PROTOCOL, events, machine, runtimes
from .bundle import Bundle
from .errors import AgentError
from .golden import golden_check
from .timing import Timed, time_calls, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from .runtimes import Runtime

    Json = dict[str, Any]

NUM_INPUTS = 64
"""Distinct inputs cycled while timing (protocol 4.3): one input repeated, or zeros, would sit in caches and lie."""

_EVALUATION_BATCH = 100
_STEPS = 3


@dataclass(frozen=True)
class Request:
    """What the host asks for. `preset`: `min_seconds`, `min_count` and `warm_up` (the keywords of `timing.warm_up`)."""

    protocol: int
    bundle: str
    precision: str
    runtime: str
    batch: int
    threads: int
    preset: Json
    evaluate: bool
    out: str
    mode: str = runtimes.DEFAULT
    options: Json = field(default_factory=dict)
    """What the device sets for its runtime (`runtimes.Loading.options`)."""


def profile(document: Json) -> Json:
    """Measure one file of a bundle in this process, which must be fresh. Nothing is timed where the golden check fails.

    Writes to `out` (.npz): `samples_ns` and `warmup_ns` (int64), and `logits` (float32, N,K) where asked to evaluate:
    whole, since the host then makes any metric of them, compares devices to the bit, and they weigh little.
    """
    request = _request(document)
    bundle = Bundle(request.bundle)
    version = runtimes.version(request.runtime, request.options)
    entry = bundle.entry(request.precision, request.runtime, version)
    path = bundle.model_path(request.precision, request.runtime, version)
    images, expected = bundle.golden()
    golden_inputs = bundle.preprocess(images)
    tolerances = bundle.tolerances(entry)
    before, (resident, _, _) = machine.snapshot(), machine.memory_bytes()

    events.say("loading", done=0, total=_STEPS)
    runtime, cold_load_ms = _clocked(lambda: _load(bundle, path, request))
    _, first_ms = _clocked(lambda: runtime.infer(golden_inputs[: request.batch]))
    checks = {"before": golden_check(_logits(runtime, golden_inputs, request.batch), expected, tolerances)}
    timing: Json = {"cold_load_ms": cold_load_ms, "first_inference_ms": first_ms}
    arrays: dict[str, Any] = {"samples_ns": [], "warmup_ns": []}
    if checks["before"]["ok"]:
        events.say("measuring", done=1, total=_STEPS)
        facts, warmed, timed = _timed(runtime, bundle, request)
        timing.update(facts)
        arrays.update(samples_ns=timed.samples_ns, warmup_ns=warmed.samples_ns)
        checks["after"] = golden_check(_logits(runtime, golden_inputs, request.batch), expected, tolerances)
    _, peak, source = machine.memory_bytes()  # before the evaluation, whose batches are larger than what was timed
    arrays = {name: np.asarray(values, dtype=np.int64) for name, values in arrays.items()}
    if request.evaluate:
        events.say("evaluating", done=2, total=_STEPS)
        arrays["logits"] = _evaluated(runtime, bundle)
    np.savez_compressed(request.out, **arrays)
    events.say("measured", done=_STEPS, total=_STEPS)
    return {
        "protocol": PROTOCOL,
        "file": entry["path"],
        "mode": request.mode,
        "golden": checks,
        "timing": timing,
        "runtime": runtime.describe(),
        "memory": {"peak_bytes": peak, "before_load_bytes": resident, "source": source},
        "machine": dict(machine.describe(), before=before, after=machine.snapshot()),
    }


def _request(document: Json) -> Request:
    try:
        request = Request(**document)
    except TypeError as error:
        raise AgentError("E_REQUEST", f"not a profile request: {error}") from None
    if request.protocol != PROTOCOL:
        message = "host speaks protocol {}, this agent {}: update the older of the two"
        raise AgentError("E_PROTOCOL", message.format(request.protocol, PROTOCOL))
    return request


def _load(bundle: Bundle, path: Path, request: Request) -> Runtime:
    loading = runtimes.Loading(
        path,
        input_name=bundle.manifest["input"]["name"],
        output_name=bundle.manifest["output"]["name"],
        threads=request.threads,
        mode=request.mode,
        precision=request.precision,
        batch=request.batch,
        options=request.options,
    )
    return runtimes.load(request.runtime, loading)


def _timed(runtime: Runtime, bundle: Bundle, request: Request) -> tuple[Json, Timed, Timed]:
    inputs, num_inputs = prepared_inputs(bundle, request.batch)
    warmed = warm_up(runtime.infer, inputs, **request.preset["warm_up"])
    load = machine.ForeignLoad()
    timed = time_calls(
        runtime.infer, inputs, min_seconds=request.preset["min_seconds"], min_count=request.preset["min_count"]
    )
    facts = {
        "foreign_cpus": load.num_cpus(),
        "num_inputs": num_inputs,
        "warm_up": {"n": len(warmed.samples_ns), "wall_s": warmed.wall_s, "steady": warmed.steady},
        "wall_s": timed.wall_s,
    }
    return facts, warmed, timed


def prepared_inputs(bundle: Bundle, batch: int) -> tuple[list[NDArray[np.float32]], int]:
    """Preprocess real images, spread over the evaluation set, into batches; and say how many images are distinct."""
    images = bundle.evaluation_images()
    wanted = NUM_INPUTS * batch
    chosen = np.linspace(0, len(images) - 1, num=min(wanted, len(images)), dtype=np.int64)
    ready = bundle.preprocess(np.asarray(images[chosen]))
    rows = np.arange(wanted).reshape(NUM_INPUTS, batch) % len(ready)
    return [np.ascontiguousarray(ready[row]) for row in rows], len(chosen)


def _evaluated(runtime: Runtime, bundle: Bundle) -> NDArray[np.float32]:
    """Give the logits (N,K) of every evaluation image; the host, which keeps the labels, makes the metric of them."""
    images = bundle.evaluation_images()
    starts = range(0, len(images), _EVALUATION_BATCH)
    batches = (bundle.preprocess(np.asarray(images[start : start + _EVALUATION_BATCH])) for start in starts)
    return np.concatenate([runtime.infer(batch) for batch in batches]).astype(np.float32, copy=False)


def _logits(runtime: Runtime, inputs: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """Infer in the batches that are timed, so that the check covers that very path and memory stays the same."""
    starts = range(0, len(inputs), batch)
    return np.concatenate([runtime.infer(np.ascontiguousarray(inputs[start : start + batch])) for start in starts])


def _clocked(call: Callable[[], Any]) -> tuple[Any, float]:
    """Give the call's result and its milliseconds."""
    begin = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - begin) / 1e6
