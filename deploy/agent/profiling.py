"""The verb `profile`: golden check, warm-up, timed loop, golden check, accuracy; facts as JSON, arrays as .npz."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import events, quantities, runtimes
from .bundle import Bundle
from .errors import AgentError
from .golden import golden_check
from .measuring import BATCHES, NUM_INPUTS, SINGLE_STREAM, STEPS, Subject, measure
from .objects import found_in_evaluation, is_detector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .runtimes import Runtime

    Json = dict[str, Any]

_EVALUATION_BATCH = 100


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
    `offline_…_ns`; the sensors' `state_times_ns`, `state_values`; and `logits` (float32, N,K) where asked to
    evaluate: whole, since the host then makes any metric of them and compares devices to the bit; of a detector
    `found_images`, `found_boxes`, `found_scores` and `found_classes`.
    """
    request = _request(document)
    opened = _Opened(request)
    answer, arrays, runtime = measure(
        opened.subject(), request.batch, request.preset, request.scenarios, request.observe
    )
    if request.evaluate:  # last: its batches are larger than what was timed, and so is their memory
        events.say("evaluating", done=2, total=STEPS)
        arrays.update(_answers(runtime, opened.bundle))
    np.savez_compressed(request.out, **arrays)
    events.say("measured", done=STEPS, total=STEPS)
    answer["timing"]["num_inputs"] = opened.num_inputs if "after" in answer["golden"] else None
    return {**answer, "file": opened.entry["path"], "mode": request.mode}


class _Opened:
    """A bundle's file that fits the runtime here."""

    def __init__(self, request: Request) -> None:
        self.bundle, self._request = Bundle(request.bundle), request
        version = runtimes.version(request.runtime, request.options)
        self.entry = self.bundle.entry(request.precision, request.runtime, version)
        self._path = self.bundle.model_path(request.precision, request.runtime, version)
        images, self._expected = self.bundle.golden()
        self._golden_inputs = self.bundle.preprocess(images)
        self.num_inputs = min(NUM_INPUTS * request.batch, len(self.bundle.evaluation_images()))

    def subject(self) -> Subject:
        """It as something to be measured."""
        return Subject(
            self._load,
            lambda batch, num: prepared_inputs(self.bundle, batch, num),
            self._check,
            lambda runtime, inputs: quantities.around(self.bundle, runtime, inputs),
            BATCHES,
        )

    def _load(self, batch: int) -> Runtime:
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

    def _check(self, runtime: Runtime, batch: int) -> Json:
        """Infer in the batches that are timed, so that the check covers that very path and memory stays the same.

        Golden images that were seen already fill the last batch up.
        """
        inputs = self._golden_inputs
        order = np.arange(-(-len(inputs) // batch) * batch) % len(inputs)
        parts = [runtime.infer(inputs[order[at : at + batch]]) for at in range(0, len(order), batch)]
        return golden_check(np.concatenate(parts), self._expected[order], self.bundle.tolerances(self.entry))


def _request(document: Json) -> Request:
    try:
        return Request(**document)
    except TypeError as error:
        raise AgentError("E_REQUEST", f"not a profile request: {error}") from None


def prepared_inputs(bundle: Bundle, batch: int, num: int) -> list[NDArray[np.float32]]:
    """Preprocess real images, spread over the evaluation set, into `num` batches."""
    images = bundle.evaluation_images()
    wanted = num * batch
    chosen = np.linspace(0, len(images) - 1, num=min(wanted, len(images)), dtype=np.int64)
    ready = bundle.preprocess(np.asarray(images[chosen]))
    rows = np.arange(wanted).reshape(num, batch) % len(ready)
    return [np.ascontiguousarray(ready[row]) for row in rows]


def _answers(runtime: Runtime, bundle: Bundle) -> dict[str, Any]:
    """What the network says of every evaluation image: `logits`, or the boxes that a detector finds."""
    if is_detector(bundle):
        return found_in_evaluation(runtime, bundle)
    return {"logits": _evaluated(runtime, bundle)}


def _evaluated(runtime: Runtime, bundle: Bundle) -> NDArray[np.float32]:
    """Give the logits (N,K) of every evaluation image; the host, which keeps the labels, makes the metric of them."""
    images = bundle.evaluation_images()
    starts = range(0, len(images), _EVALUATION_BATCH)
    batches = (bundle.preprocess(np.asarray(images[start : start + _EVALUATION_BATCH])) for start in starts)
    return np.concatenate([runtime.infer(batch) for batch in batches]).astype(np.float32, copy=False)
