"""What is done with a loaded network, whoever it is: the scenarios one after another, its parts, the machine beside it.

Facts are JSON, arrays are for the .npz; no number is judged here.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import PROTOCOL, board, events, machine, periodic, quantities
from .errors import line_of
from .sampler import Sampler
from .timing import time_calls, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .periodic import Frames
    from .runtimes import Runtime

    Json = dict[str, Any]
    Arrays = dict[str, Any]

SINGLE_STREAM, PERIODIC, OFFLINE = "single_stream", "periodic", "offline"
RATES_FPS = (30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16, 32)
NUM_INPUTS = 64
"""Distinct inputs cycled while timing (protocol 4.3): one input repeated, or zeros, would sit in caches and lie."""

SHARE = 0.2
"""Of the preset's time and count: what a trial at a rate, or a batch, is given."""

MOST_SECONDS, MOST_COUNT = 30.0, 662
"""And at most: a search of a dozen trials must end, and 662 calls bound p99 (`deploy.statistics`)."""

STEPS = 3
"""Of every measurement: loading, measuring, and what its verb does last."""

_IDLE_SECONDS = 10.0
"""How long power is read before the load (protocol 4.13), and the shortest window that energy is told of."""


class Measured(NamedTuple):
    """The answer (JSON), the arrays for the .npz, and the runtime, which may go on."""

    answer: Json
    arrays: Arrays
    runtime: Any


class Subject(NamedTuple):
    """A network to be measured."""

    load: Callable[[int], Any]
    """batch -> a runtime of its own (`runtimes.Runtime`)."""
    inputs: Callable[[int, int], Sequence[Any]]
    """(batch, how many) -> what is cycled through it."""
    check: Callable[[Any, int], Json]
    """(runtime, batch) -> the golden check's report, of whole batches."""
    around: Callable[[Any, Sequence[Any]], Arrays]
    """(runtime, inputs) -> samples of what stands before and after a call, by name."""
    batches: Sequence[int]
    """Those it can take of `BATCHES`."""


class Watch:
    """The sampler of a measurement, if there is one, and the stretches of time that matter."""

    def __init__(self, sampler: Sampler | None) -> None:
        self._sampler = sampler
        self.windows_ns: dict[str, list[int]] = {}

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Remember when `name` began and ended."""
        begin = time.perf_counter_ns()
        yield
        self.windows_ns[name] = [begin, time.perf_counter_ns()]

    def wait_idle(self, min_seconds: float) -> None:
        """Let the machine idle while its power is read: only where it has sensors of it and the run is long enough."""
        kinds = {name.split("/")[0] for name in self._sampler.names()} if self._sampler else set()
        if min_seconds >= _IDLE_SECONDS and kinds & {"power_w", "energy_j"}:
            with self.window("idle"):
                time.sleep(_IDLE_SECONDS)

    def result(self) -> tuple[Json, Arrays]:
        """End the sampler; give facts and its readings."""
        facts: Json = {"rate_hz": None, "names": [], "cpu_s": None, "windows_ns": self.windows_ns}
        if self._sampler is None:
            return facts, {}
        found = self._sampler.stop()
        facts.update(rate_hz=self._sampler.rate_hz, names=found.names, cpu_s=found.cpu_s)
        return facts, {"state_times_ns": found.times_ns, "state_values": found.values}


@contextmanager
def watching(observe: bool) -> Iterator[Watch]:
    """Read the machine's sensors beside what is done; `observe` false: only note the time."""
    if not observe:
        yield Watch(None)
        return
    with Sampler() as sampler:
        yield Watch(sampler)


def single_stream(runtime: Runtime, inputs: Sequence[Any], preset: Json, watch: Watch) -> tuple[Json, Arrays]:
    """Warm up, then one call after the other; then, apart, what the calls are made of."""
    warmed = warm_up(runtime.infer, inputs, **preset["warm_up"])
    load = machine.ForeignLoad()
    finite: list[bool] = []
    with watch.window("timed"):
        timed = time_calls(
            runtime.infer,
            inputs,
            min_seconds=preset["min_seconds"],
            min_count=preset["min_count"],
            look=lambda output: finite.append(is_finite(output)),
        )
    facts = {
        "outputs": {"looked_at": len(finite), "not_finite": finite.count(False)},
        "foreign_cpus": load.num_cpus(),
        "warm_up": {"n": len(warmed.samples_ns), "wall_s": warmed.wall_s, "steady": warmed.steady},
        "wall_s": timed.wall_s,
    }
    parts = {f"{name}_ns": samples for name, samples in quantities.traced(runtime, inputs).items()}
    arrays = {"samples_ns": timed.samples_ns, "begun_ns": timed.begun_ns, "warmup_ns": warmed.samples_ns}
    return facts, {**arrays, **parts}


def is_finite(output: Any) -> bool:
    """Whether an output, or each of several, is numbers throughout: no NaN, no infinity."""
    arrays = [np.asarray(array) for array in (output if isinstance(output, (list, tuple)) else [output])]
    return all(array.dtype.kind not in "fc" or bool(np.isfinite(array).all()) for array in arrays)


def frames(runtime: Runtime, inputs: Sequence[Any], preset: Json, call_ns: float, watch: Watch) -> tuple[Json, Arrays]:
    """Play at 30 and 60 frames a second, and look for the largest rate that holds; `call_ns`: what one call takes."""

    def run(fps: float, seconds: float) -> Frames:
        return periodic.play(runtime.infer, inputs, fps=fps, seconds=seconds)

    fixed, rates = [], []
    for fps in RATES_FPS:
        load = machine.ForeignLoad()
        with watch.window(f"periodic_{fps:g}"):
            fixed.append(run(fps, preset["min_seconds"]))
        rates.append({"fps": fps, "missed": fixed[-1].missed, "foreign_cpus": load.num_cpus()})
    brief = min(MOST_SECONDS, SHARE * preset["min_seconds"])
    trials, largest = periodic.largest_rate(lambda fps: run(fps, brief), 1e9 / call_ns)
    facts = {
        "rates": rates,
        "trials": [{"fps": found.fps, "n": len(found.latencies_ns), "missed": found.missed} for found in trials],
        "sustainable_fps": largest,
        "most_missed": periodic.MOST_MISSED,
    }
    return facts, {f"periodic_{found.fps:g}_ns": found.latencies_ns for found in fixed}


def batches(subject: Subject, preset: Json, watch: Watch) -> tuple[list[Json], Arrays]:
    """Time one call after the other at every batch, each on a runtime of its own.

    A fifth of the time each, half a minute at most. Nothing is timed where such a batch's golden check fails. Facts a
    batch: its `golden` report, whether its warm-up ended `steady`, how many CPUs others kept busy; and with which error
    it `failed`, which costs its own numbers alone. The first that runs out of memory is the last.
    """
    facts: list[Json] = []
    arrays: Arrays = {}
    least = {
        "min_seconds": min(MOST_SECONDS, SHARE * preset["min_seconds"]),
        "min_count": min(MOST_COUNT, int(SHARE * preset["min_count"])),
    }
    limit = dict(preset["warm_up"], max_seconds=SHARE * preset["warm_up"]["max_seconds"])
    for batch in subject.batches:
        facts.append({"batch": batch, "golden": None, "steady": None, "foreign_cpus": None, "failed": None})
        arrays[f"offline_{batch}_ns"] = []
        try:
            arrays[f"offline_{batch}_ns"] = _timed_batch(subject, facts[-1], least, limit, watch)
        except Exception as error:  # the runtimes' exceptions share no base
            facts[-1]["failed"] = line_of(error)
            if _is_out_of_memory(error):
                facts[-1]["failed"] += ": larger batches were left out"
                break
    return facts, arrays


def _timed_batch(subject: Subject, facts: Json, least: Json, limit: Json, watch: Watch) -> Sequence[int]:
    """One batch's samples, none where its check fails; what it takes of memory ends with this call."""
    batch = facts["batch"]
    runtime = subject.load(batch)
    try:
        # as many images as the single stream has, not as many batches: 64 of 32 photos would be gigabytes
        inputs = subject.inputs(batch, max(2, NUM_INPUTS // batch))
        facts["golden"] = subject.check(runtime, batch)
        if not facts["golden"]["ok"]:
            return []
        facts["steady"] = warm_up(runtime.infer, inputs, **limit).steady
        load = machine.ForeignLoad()
        with watch.window(f"offline_{batch}"):
            samples = time_calls(runtime.infer, inputs, **least).samples_ns
        facts["foreign_cpus"] = load.num_cpus()
    finally:
        runtime.close()
    return samples


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a larger batch must fail as well; ONNX Runtime has its allocator's words alone."""
    known = isinstance(error, MemoryError) or getattr(error, "code", None) == "E_OUT_OF_MEMORY"
    return known or any(sign in str(error) for sign in ("Failed to allocate", "bad_alloc", "bad allocation"))


def measure(subject: Subject, batch: int, preset: Json, scenarios: Sequence[str], observe: bool) -> Measured:
    """Load, check, measure the single stream and what else is asked for, check again; the machine is watched beside.

    Nothing is timed where the first check fails.
    """
    with watching(observe) as watch:
        watch.wait_idle(preset["min_seconds"])
        before, (resident, _, _) = machine.snapshot(), machine.memory_bytes()
        events.say("loading", done=0, total=STEPS)
        begin = time.perf_counter_ns()
        runtime = subject.load(batch)
        loaded = time.perf_counter_ns()
        inputs = subject.inputs(batch, NUM_INPUTS)
        first = time.perf_counter_ns()
        runtime.infer(inputs[0])
        # what children did, building the engine or opening it before this process dares, is no part of a load
        children_ms = runtime.describe().get("cold_ms", {}).get("children") or 0.0
        timing: Json = {
            "cold_load_ms": (loaded - begin) / 1e6 - children_ms,
            "first_inference_ms": (time.perf_counter_ns() - first) / 1e6,
        }
        checks = {"before": subject.check(runtime, batch)}
        arrays: Arrays = {"samples_ns": [], "warmup_ns": []}
        if checks["before"]["ok"]:
            events.say("measuring", done=1, total=STEPS)
            facts, arrays = single_stream(runtime, inputs, preset, watch)
            timing.update(facts)
        _, peak, source = machine.memory_bytes()  # here: what follows takes more, and is not what it is quoted with
        if checks["before"]["ok"]:
            timing.update(_scenarios(subject, runtime, inputs, preset, scenarios, arrays, watch))
            checks["after"] = subject.check(runtime, batch)
        state, readings = watch.result()
    answer = {
        "protocol": PROTOCOL,
        "golden": checks,
        "timing": timing,
        "runtime": runtime.describe(),
        "memory": {"peak_bytes": peak, "before_load_bytes": resident, "source": source},
        "machine": dict(machine.describe(), board=board.describe(Path("/")), before=before, after=machine.snapshot()),
        "state": state,
        "cross_check": runtime.cross_check(batch) if "after" in checks else None,
    }
    samples = {name: np.asarray(values, dtype=np.int64) for name, values in arrays.items()}
    return Measured(answer, {**samples, **readings}, runtime)


def _scenarios(
    subject: Subject,
    runtime: Any,
    inputs: Sequence[Any],
    preset: Json,
    scenarios: Sequence[str],
    arrays: Arrays,
    watch: Watch,
) -> Json:
    """What is measured beside the single stream, whose `arrays` it adds its own to; give the facts."""
    facts: Json = {}
    arrays.update({f"{name}_ns": samples for name, samples in subject.around(runtime, inputs).items()})
    if PERIODIC in scenarios:
        facts["periodic"], found = frames(runtime, inputs, preset, median(arrays["samples_ns"]), watch)
        arrays.update(found)
    if OFFLINE in scenarios:
        facts["offline"], found = batches(subject, preset, watch)
        arrays.update(found)
    return facts
