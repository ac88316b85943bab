"""The verb `measure`: any ONNX file, without a bundle, by the same protocol; inputs and expected outputs come along.

`feeds.npz` holds `in/<name>` (N, one call's shape …) and `out/<name>` (fewer, the first ones' answers elsewhere).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import events, onnx_runtime, runtimes
from .errors import AgentError
from .golden import golden_check
from .measuring import BATCHES, STEPS, Subject, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Json = dict[str, Any]
    Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Request:
    """What the host asks for; see `profiling.Request` for what has the same name there."""

    protocol: int
    model: str
    feeds: str
    batched: bool
    """Whether the first size of every input is free: calls can be put together."""
    tolerances: dict[str, float]
    runtime: str
    threads: int
    preset: Json
    out: str
    precision: str = "fp32"
    mode: str = runtimes.DEFAULT
    options: Json = field(default_factory=dict)
    scenarios: list[str] = field(default_factory=list)
    turn: int = 1
    observe: bool = True
    beside: list[str] = field(default_factory=list)
    """Files that hold weights of `model`."""


class OneInput:
    """A runtime of a single input and output behind feeds: what is not ONNX Runtime takes arrays."""

    def __init__(self, runtime: runtimes.Runtime, name: str) -> None:
        self._runtime, self._name = runtime, name
        self.describe, self.cross_check, self.close = runtime.describe, runtime.cross_check, runtime.close

    def infer(self, feed: Feed) -> list[NDArray[Any]]:
        """Give the only output."""
        return [self._runtime.infer(feed[self._name])]

    def trace(self, feed: Feed) -> dict[str, int]:
        """See `Runtime.trace`."""
        return self._runtime.trace(feed[self._name])


def measure_file(document: Json) -> Json:
    """Measure an ONNX file in this process, which must be fresh: `profile`'s answer and arrays, without accuracy."""
    try:
        request = Request(**document)
    except TypeError as error:
        raise AgentError("E_REQUEST", f"not a measure request: {error}") from None
    with np.load(request.feeds) as arrays:
        given = {name[3:]: arrays[name] for name in arrays.files if name.startswith("in/")}
        expected = {name[4:]: arrays[name] for name in arrays.files if name.startswith("out/")}
    feeds = [dict(zip(given, values)) for values in zip(*given.values())]  # noqa: B905 (strict= is Python 3.10)
    size = next(iter(given.values())).shape[1]  # images a call: where it is more than one, no calls are put together
    subject = Subject(
        lambda batch: _load(request, list(given), list(expected), batch),
        lambda batch, num: feeds if batch == size else _together(feeds, np.arange(num * batch) % len(feeds), batch),
        lambda runtime, batch: _check(runtime, feeds, expected, request.tolerances, batch // size),
        lambda runtime, inputs: {},
        BATCHES if request.batched else (),
    )
    answer, arrays, _ = measure(subject, size, request.preset, request.scenarios, request.observe)
    np.savez_compressed(request.out, **arrays)
    events.say("measured", done=STEPS, total=STEPS)
    answer["timing"]["num_inputs"] = len(feeds)
    return {**answer, "file": request.model, "mode": request.mode}


def _load(request: Request, inputs: list[str], outputs: list[str], batch: int) -> Any:
    if request.runtime == "onnxruntime":
        return onnx_runtime.load_feeds(Path(request.model), outputs, request.threads)
    if len(inputs) > 1 or len(outputs) > 1:
        message = f"{request.runtime} takes files of one input and one output here, this has {inputs} and {outputs}"
        raise AgentError("E_SHAPE", message)
    loading = runtimes.Loading(
        Path(request.model),
        input_name=inputs[0],
        output_name=outputs[0],
        threads=request.threads,
        precision=request.precision,
        batch=batch,
        options=request.options,
        beside=tuple(map(Path, request.beside)),
    )
    return OneInput(runtimes.load(request.runtime, loading), inputs[0])


def _together(feeds: list[Feed], order: NDArray[np.int64], num: int) -> list[Feed]:
    """The calls in this order, each `num` of them put together."""
    groups = [[feeds[at] for at in order[start : start + num]] for start in range(0, len(order), num)]
    return [{name: np.concatenate([feed[name] for feed in group]) for name in feeds[0]} for group in groups]


def _check(runtime: Any, feeds: list[Feed], expected: Feed, tolerances: dict[str, float], num: int) -> Json:
    """The first answers against those that came along, `num` calls at once, a call a row; the worst output's report.

    Calls that were made already fill the last group up.
    """
    count = len(next(iter(expected.values())))
    order = np.arange(-(-count // num) * num) % count
    answers = [runtime.infer(feed) for feed in _together(feeds, order, num)]
    reports = []
    for place, wanted in enumerate(expected.values()):
        rows = wanted.reshape(count, -1).astype(np.float32)[order]
        got = [np.asarray(answer[place], np.float32) for answer in answers]
        scaled = dict(tolerances, max_abs=tolerances["max_abs"] * max(1.0, float(np.abs(rows).max(initial=0))))
        same = all(array.size == num * rows.shape[1] for array in got)
        found = np.concatenate([array.reshape(num, -1) for array in got]) if same else np.zeros((0, 0), np.float32)
        reports.append(golden_check(found, rows, scaled))
    return min(reports, key=lambda report: (report["ok"], report["cosine"] or 0))
