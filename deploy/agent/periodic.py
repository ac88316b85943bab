"""Frames that come at a fixed rate, whether or not the last one is done: what a camera does (measuring protocol 4.8).

Latency counts from when a frame was *due*. A closed loop never sees a queue grow; this does.
"""

from __future__ import annotations

import itertools
import math
import time
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .timing import Clock, Infer

MOST_MISSED = 0.01
"""Share of the frames that may miss their deadline at a rate that is called sustainable."""

_HOPELESS_S = 30.0
"""Behind by more than this, a rate will not be caught up with."""

_CLOSE = 1.02
_WIDE = 10.0


class Frames(NamedTuple):
    """One run at one rate: latency of each frame from when it was due, in ns, and how many were not done in time."""

    fps: float
    latencies_ns: array[int]
    missed: int

    @property
    def sustained(self) -> bool:
        """Whether the rate held: few deadlines missed."""
        return self.missed <= MOST_MISSED * len(self.latencies_ns)


def play(
    infer: Infer,
    inputs: Sequence[Any],
    *,
    fps: float,
    seconds: float,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Frames:
    """Infer a frame every 1 / fps for `seconds`; the deadline of a frame is when the next one is due.

    A frame that comes while another is being worked on waits. The process sleeps between frames, as an application
    does: what it takes to wake up is part of the latency. A run that falls behind by more than `seconds`, or 30, ends.
    """
    period_ns = 1e9 / fps
    stream = itertools.cycle(inputs)
    latencies, missed = array("q"), 0
    begin = clock()
    for number in range(max(1, round(seconds * fps))):
        due = begin + round(number * period_ns)
        ahead = due - clock()
        if ahead > 0:
            sleep(ahead / 1e9)
        elif -ahead > min(seconds, _HOPELESS_S) * 1e9:
            break
        infer(next(stream))
        latencies.append(clock() - due)
        missed += latencies[-1] > period_ns
    return Frames(fps, latencies, missed)


def largest_rate(run: Callable[[float], Frames], guess_fps: float) -> tuple[list[Frames], float | None]:
    """Bisect for the largest sustainable rate, to 2 %; give every trial, and the rate (None: not even one a second).

    `run` plays at a rate. The search begins at a tenth of `guess_fps`, which is what a closed loop promises, goes down
    by tens until a rate holds, and ends at ten times the guess.
    """
    low, high = guess_fps / _WIDE, guess_fps * _WIDE
    trials = [run(low)]
    while not trials[-1].sustained:
        if low <= 1:
            return trials, None
        low, high = max(1.0, low / _WIDE), low
        trials.append(run(low))
    while high / low > _CLOSE:
        trials.append(run(math.sqrt(low * high)))
        low, high = (trials[-1].fps, high) if trials[-1].sustained else (low, trials[-1].fps)
    return trials, low
