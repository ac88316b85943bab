"""The order of a measurement, with a network that is made up: what is read when, and with which inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.agent.measuring import BATCHES, OFFLINE, SINGLE_STREAM, Subject, measure

PRESET: dict[str, Any] = {
    "min_seconds": 0,
    "min_count": 10,
    "warm_up": {"min_seconds": 0, "min_count": 1, "window": 1, "tolerance": 1e9, "max_seconds": 1},
}

IN_A_PROCESS_OF_ITS_OWN = """
import json
from tests.deploy.test_measuring import PRESET, Network, subject_of
from deploy.agent.measuring import measure
found = measure(subject_of(lambda batch: Network(megabytes=8 * batch)), 1, PRESET, ["single_stream", "offline"], False)
print(json.dumps(found.answer["memory"]))
"""


class Network:
    """Says of each image its first pixel; a call takes `megabytes` and keeps them."""

    def __init__(self, megabytes: int = 0) -> None:
        self._megabytes, self._kept = megabytes, b""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self._kept = b"x" * (self._megabytes << 20)
        return images[:, 0]

    def trace(self, images: Any) -> dict[str, int]:
        return {}

    def cross_check(self, batch: int) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {}


def subject_of(load: Any, asked: list[tuple[int, int]] | None = None) -> Subject:
    def inputs(batch: int, num: int) -> list[NDArray[np.float32]]:
        if asked is not None:
            asked.append((batch, num))
        return [np.zeros((batch, 4), np.float32)] * num

    return Subject(load, inputs, lambda *_: {"ok": True}, lambda *_: {}, BATCHES)


def test_peak_memory_is_that_of_the_row_that_is_quoted() -> None:
    """One image takes 8 MB, the 32 of the largest batch take 256."""
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], capture_output=True, text=True, check=True)
    memory = json.loads(done.stdout)
    assert memory["source"] == "VmHWM"
    assert 8 <= (memory["peak_bytes"] - memory["before_load_bytes"]) / 2**20 < 64


def test_batches_are_cycled_through_as_many_images_as_single_calls() -> None:
    asked: list[tuple[int, int]] = []
    measure(subject_of(lambda batch: Network(), asked), 1, PRESET, [SINGLE_STREAM, OFFLINE], False)
    assert asked == [(1, 64), (1, 64), (2, 32), (4, 16), (8, 8), (16, 4), (32, 2)]
