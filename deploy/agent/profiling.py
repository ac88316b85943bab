"""The verb `profile`: golden check, warm-up, timed loop, golden check, accuracy; facts as JSON, arrays as .npz."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import PROTOCOL, events, machine, quantities, runtimes
from .bundle import Bundle
from .errors import AgentError
from .golden import golden_check
from .measuring import BATCHES, SINGLE_STREAM, Subject, measure, watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .measuring import Watch
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
    scenarios: list[str] = field(default_factory=lambda: [SINGLE_STREAM])
    turn: int = 1
    """Which of several processes this is: the same request twice is two jobs."""
    observe: bool = True
    """Whether a process beside this one reads the machine's sensors."""


def profile(document: Json) -> Json:
    """Measure one file of a bundle in this process, which must be fresh. Nothing is timed where the golden check fails.

    Writes to `out` (.npz), in ns: `samples_ns`, `begun_ns`, `warmup_ns`, a call's parts (`h2d_ns`, …), `periodic_…_ns`,
    `offline_…_ns`; the sensors' `state_times_ns`, `state_values`; and `predictions` (int64, N) where asked to evaluate.
    """
    request = _request(document)
    subject = _Opened(request)
    with watching(request.observe) as watch:
        watch.wait_idle(request.preset["min_seconds"])
        before, (resident, _, _) = machine.snapshot(), machine.memory_bytes()
        events.say("loading", done=0, total=_STEPS)
        runtime, cold_load_ms = _clocked(lambda: subject.load(request.batch))
        _, first_ms = _clocked(lambda: runtime.infer(subject.golden_inputs[: request.batch]))
        timing: Json = {"cold_load_ms": cold_load_ms, "first_inference_ms": first_ms}
        checks = {"before": subject.check(runtime)}
        arrays: Json = {"samples_ns": np.zeros(0, np.int64), "warmup_ns": np.zeros(0, np.int64)}
        if checks["before"]["ok"]:
            events.say("measuring", done=1, total=_STEPS)
            facts, found = _measured(subject, runtime, request, watch)
            timing.update(facts)
            arrays.update(found)
            checks["after"] = subject.check(runtime)
        state, readings = watch.result()
    _, peak, source = machine.memory_bytes()  # before the evaluation, whose batches are larger than what was timed
    after = machine.snapshot()
    if request.evaluate:
        events.say("evaluating", done=2, total=_STEPS)
        arrays["predictions"] = _predictions(runtime, subject.bundle)
    np.savez_compressed(request.out, **arrays, **readings)
    events.say("measured", done=_STEPS, total=_STEPS)
    return {
        "protocol": PROTOCOL,
        "file": subject.entry["path"],
        "mode": request.mode,
        "golden": checks,
        "timing": timing,
        "runtime": runtime.describe(),
        "memory": {"peak_bytes": peak, "before_load_bytes": resident, "source": source},
        "machine": dict(machine.describe(), before=before, after=after),
        "state": state,
    }


class _Opened:
    """A bundle's file that fits the runtime here."""

    def __init__(self, request: Request) -> None:
        self.bundle, self._request = Bundle(request.bundle), request
        version = runtimes.version(request.runtime, request.options)
        self.entry = self.bundle.entry(request.precision, request.runtime, version)
        self._path = self.bundle.model_path(request.precision, request.runtime, version)
        images, self._expected = self.bundle.golden()
        self.golden_inputs = self.bundle.preprocess(images)

    def load(self, batch: int) -> Runtime:
        request = self._request
        loading = runtimes.Loading(
            self._path,
            input_name=self.bundle.manifest["input"]["name"],
            output_name=self.bundle.manifest["output"]["name"],
            threads=request.threads,
            mode=request.mode,
            precision=request.precision,
            batch=batch,
            options=request.options,
        )
        return runtimes.load(request.runtime, loading)

    def check(self, runtime: Runtime) -> Json:
        """Infer in the batches that are timed, so that the check covers that very path and memory stays the same."""
        batch, inputs = self._request.batch, self.golden_inputs
        parts = [runtime.infer(np.ascontiguousarray(inputs[at : at + batch])) for at in range(0, len(inputs), batch)]
        return golden_check(np.concatenate(parts), self._expected, self.bundle.tolerances(self.entry))


def _measured(opened: _Opened, runtime: Runtime, request: Request, watch: Watch) -> tuple[Json, Json]:
    inputs, num_inputs = prepared_inputs(opened.bundle, request.batch)
    subject = Subject(opened.load, lambda batch: prepared_inputs(opened.bundle, batch)[0], BATCHES)
    facts, arrays = measure(subject, runtime, inputs, request.scenarios, request.preset, watch)
    beside = quantities.around(opened.bundle, runtime, inputs)
    return dict(facts, num_inputs=num_inputs), {**arrays, **{f"{name}_ns": found for name, found in beside.items()}}


def _request(document: Json) -> Request:
    try:
        request = Request(**document)
    except TypeError as error:
        raise AgentError("E_REQUEST", f"not a profile request: {error}") from None
    if request.protocol != PROTOCOL:
        message = "host speaks protocol {}, this agent {}: update the older of the two"
        raise AgentError("E_PROTOCOL", message.format(request.protocol, PROTOCOL))
    return request


def prepared_inputs(bundle: Bundle, batch: int) -> tuple[list[NDArray[np.float32]], int]:
    """Preprocess real images, spread over the evaluation set, into batches; and say how many images are distinct."""
    images = bundle.evaluation_images()
    wanted = NUM_INPUTS * batch
    chosen = np.linspace(0, len(images) - 1, num=min(wanted, len(images)), dtype=np.int64)
    ready = bundle.preprocess(np.asarray(images[chosen]))
    rows = np.arange(wanted).reshape(NUM_INPUTS, batch) % len(ready)
    return [np.ascontiguousarray(ready[row]) for row in rows], len(chosen)


def _predictions(runtime: Runtime, bundle: Bundle) -> NDArray[np.int64]:
    """Give the class of every evaluation image (int64, N); the host, which keeps the labels, counts the right ones."""
    images = bundle.evaluation_images()
    classes = []
    for start in range(0, len(images), _EVALUATION_BATCH):
        batch = bundle.preprocess(np.asarray(images[start : start + _EVALUATION_BATCH]))
        classes.append(runtime.infer(batch).argmax(axis=1))
    return np.concatenate(classes).astype(np.int64)


def _clocked(call: Callable[[], Any]) -> tuple[Any, float]:
    """Give the call's result and its milliseconds."""
    begin = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - begin) / 1e6
