"""The clock around the call: adaptive warm-up, then the timed loop (measuring protocol 4.4 and 4.5).

One stream, closed loop: the next call starts when the last one is done. Only `infer` stands between the two readings.
"""

from __future__ import annotations

import itertools
import random
import time
from array import array
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Infer = Callable[[Any], Any]
    Clock = Callable[[], int]


_LOOKED_AT = 0.01  # of the outputs
_SMALLEST_WINDOW = 5  # calls: a median of fewer is moved by two of them


class Timed(NamedTuple):
    """Calls in the order they were made: latencies and begins in ns; seconds of the loop; whether windows agreed."""

    samples_ns: array[int]
    begun_ns: array[int]
    wall_s: float
    steady: bool


def warm_up(
    infer: Infer,
    inputs: Sequence[Any],
    *,
    min_seconds: float,
    min_count: int,
    window: int,
    tolerance: float,
    max_seconds: float,
    clock: Clock = time.perf_counter_ns,
) -> Timed:
    """Call until `min_seconds` and `min_count` have passed and the last 3 windows' medians agree, or `max_seconds`.

    `tolerance` is the share by which the largest of the three medians may exceed the smallest. Clocks that scale with
    load (DVFS) settle within seconds, not within a fixed few calls. A network too slow for three windows by then is
    judged by the thirds of the calls it made, 15 at least: else it could never be steady, however long it runs.
    """
    samples, begun = array("q"), array("q")
    stream = itertools.cycle(inputs)
    begin = clock()
    while True:
        end, _ = _time_one(infer, stream, samples, begun, clock)
        elapsed = (end - begin) / 1e9
        due = len(samples) % window == 0 and len(samples) >= min_count and elapsed >= min_seconds
        if due and _steady(samples, window, tolerance):
            return Timed(samples, begun, elapsed, True)
        third = len(samples) // 3
        if elapsed >= max_seconds and third >= min(window, _SMALLEST_WINDOW):
            return Timed(samples, begun, elapsed, third < window and _steady(samples, third, tolerance))


def time_calls(
    infer: Infer,
    inputs: Sequence[Any],
    *,
    min_seconds: float,
    min_count: int,
    look: Callable[[Any], None] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Timed:
    """Time calls over the cycled `inputs` until `min_seconds` have passed and `min_count` samples are there.

    `look` is shown the first output and a random 1 % of the others (protocol 4.3), between two calls.
    """
    samples, begun = array("q"), array("q")
    stream = itertools.cycle(inputs)
    draw = random.Random(0)  # noqa: S311 (no secret)
    begin = clock()
    while True:
        end, output = _time_one(infer, stream, samples, begun, clock)
        if look and (len(samples) == 1 or draw.random() < _LOOKED_AT):
            look(output)
        elapsed = (end - begin) / 1e9
        if elapsed >= min_seconds and len(samples) >= min_count:
            return Timed(samples, begun, elapsed, True)


def _time_one(
    infer: Infer, stream: Iterator[Any], samples: array[int], begun: array[int], clock: Clock
) -> tuple[int, Any]:
    images = next(stream)
    begin = clock()
    output = infer(images)
    end = clock()
    samples.append(end - begin)
    begun.append(begin)
    return end, output


def _steady(samples: array[int], window: int, tolerance: float) -> bool:
    if len(samples) < 3 * window:
        return False
    last = samples[-3 * window :]
    medians = [median(last[start : start + window]) for start in range(0, 3 * window, window)]
    return max(medians) <= min(medians) * (1 + tolerance)
