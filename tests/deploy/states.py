"""Readings made by hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deploy.machine_state import State

SECOND = 10**9


def state(
    sensors: dict[str, ArrayLike],
    *,
    timed: tuple[float, float],
    idle: tuple[float, float] | None = None,
    rate: float = 10,
) -> State:
    """Rounds of 1 ms at `rate` from second 0 on; a sensor's values a round, or one for all; windows in seconds."""
    count = max((np.size(values) for values in sensors.values()), default=0)
    begins = (np.arange(count) / rate * SECOND).astype(np.int64)
    columns = [np.broadcast_to(np.asarray(values, np.float64), count) for values in sensors.values()]
    windows = {"timed": timed, **({"idle": idle} if idle else {})}
    return State(
        list(sensors),
        np.stack([begins, begins + SECOND // 1000], axis=1),
        np.stack(columns, axis=1) if columns else np.zeros((0, 0)),
        {name: (int(begin * SECOND), int(end * SECOND)) for name, (begin, end) in windows.items()},
        rate,
        0.1,
    )
