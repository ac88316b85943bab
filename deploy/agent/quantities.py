"""What a call is made of, and what stands around it: copies, execution, enqueueing; pre- and post-processing.

Taken after the timed loop, so that what looks inside a call does not slow down the calls that are told.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .classes import best_classes
from .objects import is_detector, reader
from .timing import time_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .bundle import Bundle
    from .runtimes import Runtime
    from .timing import Infer

    Samples = dict[str, NDArray[np.int64]]

_COUNT = 200
_MOST_SECONDS = 1.0
_TOP = 5


def traced(runtime: Runtime, inputs: Sequence[NDArray[np.float32]]) -> Samples:
    """Give the parts of up to 200 calls, or of one second of them, in ns; nothing where the runtime has no parts."""
    found: dict[str, list[int]] = {}
    begin = time.perf_counter()
    for images in itertools.islice(itertools.cycle(inputs), _COUNT):
        for name, elapsed_ns in runtime.trace(images).items():
            found.setdefault(name, []).append(elapsed_ns)
        if not found or time.perf_counter() - begin > _MOST_SECONDS:
            break
    return {name: np.array(samples, dtype=np.int64) for name, samples in found.items()}


def around(bundle: Bundle, runtime: Runtime, inputs: Sequence[NDArray[np.float32]]) -> Samples:
    """Time what an application does before and after the call: pixels to input, and logits to the five best classes, or
    of a detector its raw output to boxes (non-maximum suppression).

    In ns a call, 64 of them or more, over distinct images; in numpy, as `predict` does it.
    """
    batch = len(inputs[0])
    images = np.asarray(bundle.evaluation_images()[: len(inputs) * batch])
    pixels = [images[start : start + batch] for start in range(0, len(images), batch)]
    answers = [runtime.infer(batch_of_images) for batch_of_images in inputs]

    after = reader(bundle) if is_detector(bundle) else lambda row: best_classes(row, _TOP)

    def finish(outputs: Any) -> None:
        for row in outputs:
            after(row)

    timed: dict[str, tuple[Infer, Sequence[Any]]] = {"pre": (bundle.preprocess, pixels), "post": (finish, answers)}
    return {
        name: np.array(time_calls(call, given, min_seconds=0, min_count=len(inputs)).samples_ns, dtype=np.int64)
        for name, (call, given) in timed.items()
    }
