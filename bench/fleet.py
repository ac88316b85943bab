"""What devices over ssh cost beside the work: to start a job, to send a bundle again, to run many at once.

A real sshd on loopback, and a runtime that sleeps, so that the devices share nothing but this machine's processes.
`make bench ARGS=fleet` writes results/fleet.json; run nothing beside it.

start_s: connecting, probing, and a job's first sign of work, where line, agent and files are there already; the goal is
1.5 s at most. resent_bytes: what travels for an unchanged bundle; the goal is 0. fleet_over_one: how much longer so
many devices take than one; the goal is 1.5 at most.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afpkd.record import Json, write_record
from bench.loopback import Board, python_with
from bench.rows import RESULTS, circumstances
from deploy.devices import Device, open_target, probe
from deploy.fleet import on_each
from deploy.inventory import VARIABLE
from deploy.jobs import Work, run_job
from deploy.ssh import SshTarget
from export.bundle import Evaluation, Golden, ModelFile, write_bundle

CLASSES = 10
_STEPS = ("connect_s", "probe_s", "submit_s", "start_s")
SLEEPER = """
import time

import numpy

__version__ = "1.32.0"


class SessionOptions:
    def add_session_config_entry(self, key, value):
        pass


class InferenceSession:
    def __init__(self, path, options, providers):
        pass

    def get_providers(self):
        return ["sleep"]

    def run(self, outputs, inputs):
        (images,) = inputs.values()
        time.sleep(0.01)
        return [numpy.eye(10, dtype=numpy.float32)[numpy.zeros(len(images), dtype=int)]]
"""


class Sizes(NamedTuple):
    """How much is measured."""

    devices: int = 16
    seconds: float = 30.0
    """Of each device's sleep: a standard preset's."""
    repeats: int = 5


FULL = Sizes()


def main(sizes: Sizes = FULL, results: Path = RESULTS) -> None:
    """Measure, write fleet.json into `results`, print it."""
    found = {"conditions": _conditions(sizes), **measured(sizes)}
    path = results / "fleet.json"
    write_record(path, found)
    sys.stdout.write(path.read_text() + "\n")


def measured(sizes: Sizes) -> Json:
    """Give every figure, in seconds, bytes and ratios."""
    with _boards(sizes.devices) as (names, bundle), _counted() as sent:
        on_each(names, lambda device: _run(device, bundle, 0.0))  # agents and files are there from now on
        first_bytes = sum(sent)
        sent.clear()
        starts = [on_each(names[:1], lambda device: _run(device, bundle, 0.0))[0] for _ in range(sizes.repeats)]
        resent_bytes = sum(sent)
        alone_s = _timed(names[:1], bundle, sizes.seconds)
        together_s = _timed(names, bundle, sizes.seconds)
    return {
        **{key: statistics.median(row[key] for row in starts) for key in _STEPS},
        "starts_s": [row["start_s"] for row in starts],
        "sent_bytes": first_bytes // len(names),
        "resent_bytes": resent_bytes,
        "one_s": alone_s,
        "fleet_s": together_s,
        "fleet_over_one": together_s / alone_s,
    }


def _timed(names: list[str], bundle: Path, seconds: float) -> float:
    begin = time.perf_counter()
    rows = on_each(names, lambda device: _run(device, bundle, seconds))
    assert not [row["error"] for row in rows if "error" in row], rows
    return time.perf_counter() - begin


def _run(device: Device, bundle: Path, seconds: float) -> Json:
    """A profile's job on a device; give when it had connected, had been probed, and began to work."""
    marks = [time.perf_counter()]

    def mark(text: str, done: int, total: int) -> None:
        if text == "loading":
            marks.append(time.perf_counter())

    with open_target(device) as target:
        marks.append(time.perf_counter())
        probe(target)
        marks.append(time.perf_counter())
        with tempfile.TemporaryDirectory() as folder:
            answer = run_job(target, _work(bundle, seconds, Path(folder) / "samples.npz"), mark)
    assert answer["golden"]["after"]["ok"], answer
    connect_s, probe_s, submit_s = np.diff(marks)
    return dict(zip(_STEPS, (connect_s, probe_s, submit_s, marks[-1] - marks[0]), strict=True))


def _work(bundle: Path, seconds: float, samples: Path) -> Work:
    warm_up = {"min_seconds": 0, "min_count": 3, "window": 1, "tolerance": 1e9, "max_seconds": 1}
    request = {
        **{"bundle": "bundle", "precision": "fp32", "runtime": "onnxruntime", "batch": 1, "threads": 1},
        **{"preset": {"min_seconds": seconds, "min_count": 3, "warm_up": warm_up}, "evaluate": True, "out": "s.npz"},
    }
    names = ("manifest.json", "fp32.onnx", "golden.npz", "eval.npy")
    files = {f"bundle/{name}": bundle / name for name in names}
    return Work(verb="profile", request=request, files=files, results={"s.npz": samples})


@contextmanager
def _boards(number: int) -> Iterator[tuple[list[str], Path]]:
    """Give the names of so many devices on loopback, and a bundle for them."""
    before = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        board = Board.made(folder, addresses=number)
        board.describe(python=python_with(folder / "sleeper", "onnxruntime.py", SLEEPER), runtime="onnxruntime")
        os.environ[VARIABLE] = str(folder / "devices.toml")
        try:
            board.start()
            yield ["board", *(f"board{n}" for n in range(1, number))], _bundle(folder)
        finally:
            board.stop()
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Collect the size of every file that is sent meanwhile."""
    sent, put = [], SshTarget.put

    def counting(self: SshTarget, source: Path, name: str) -> None:
        sent.append(source.stat().st_size)
        put(self, source, name)

    SshTarget.put = counting  # type: ignore[method-assign]  # counted while it is measured
    try:
        yield sent
    finally:
        SshTarget.put = put  # type: ignore[method-assign]  # put back


def _bundle(folder: Path) -> Path:
    """A bundle of which everything is real but the network, which says class 0."""
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    (folder / "fp32.onnx").write_bytes(np.random.default_rng(1).bytes(300_000))  # a ResNet-8's size
    logits = np.eye(CLASSES, dtype=np.float32)[np.zeros(64, dtype=int)]
    rule = {"layout": "NCHW", "scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}
    tolerances = {"max_abs": 1e-6, "cosine": 0.999, "argmax_agreement": 100.0}
    facts = {"role": "student", "arch": "sleeper", "num_params": 0, "macs": {"macs": 0}, "preprocessing": rule}
    write_bundle(
        folder / "bundle",
        facts=facts,
        files=[ModelFile(folder / "fp32.onnx", "fp32", 18)],
        golden=Golden(images[:16], logits[:16], {"fp32": tolerances}),
        evaluation=Evaluation(images, np.zeros(64, dtype=np.int64), [str(n) for n in range(CLASSES)]),
    )
    return folder / "bundle"


def _conditions(sizes: Sizes) -> Json:
    return {**sizes._asdict(), **circumstances()}
