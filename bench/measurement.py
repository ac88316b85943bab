"""Is our clock right? Against a bare ONNX Runtime loop, against itself, against OpenVINO's own tool (half an hour)."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from afpkd.errors import UserError
from afpkd.record import Json, provenance, write_text
from bench.command import run
from bench.rows import RESULTS
from bench.student_files import exported
from deploy import presets
from deploy.agent.timing import time_calls
from deploy.measure_file import feeds_for, measure_file
from deploy.pack import AGENT, agent_archive

ROUNDS = 21
"""Twenty pairs of neighbours."""

MODEL = "wrn-40-2"
"""A call of milliseconds."""

BARE = """
import sys, time
import numpy, onnxruntime
model, feeds, threads, warm, seconds = sys.argv[1:4] + [float(word) for word in sys.argv[4:]]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
given = dict(numpy.load(feeds))
inputs = [{name: given[name][row] for name in given} for row in range(len(next(iter(given.values()))))]
taken = []
for length in (warm, seconds):
    taken.clear()
    end, at = time.perf_counter() + length, 0
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        session.run(None, inputs[at % len(inputs)])
        taken.append(time.perf_counter_ns() - begin)
        at += 1
print(numpy.median(taken) / 1e6)
"""

OPENVINO = """
import json, sys
import numpy, openvino
sys.path.insert(0, sys.argv[1])
from agent.timing import time_calls, warm_up
model, feeds, threads, warm, seconds = sys.argv[2:5] + [float(word) for word in sys.argv[5:]]
settings = {"INFERENCE_NUM_THREADS": int(threads), "NUM_STREAMS": 1}
given = numpy.load(feeds)
network = openvino.Core().read_model(model)
network.reshape({name: given[name].shape[1:] for name in given.files})  # as benchmark_app does: a free batch is slower
request = openvino.compile_model(network, "CPU", settings).create_infer_request()
request.infer([given[name][0] for name in given.files])
inputs, inside = [None], []  # inputs lie in the request, as benchmark_app has it: the call alone is compared
def infer(images):
    request.infer(share_outputs=True)
    inside.append(request.latency)
warm_up(infer, inputs, min_seconds=warm, min_count=50, window=50, tolerance=0.02, max_seconds=5 * warm)
inside.clear()
timed = time_calls(infer, inputs, min_seconds=seconds, min_count=200)
print(numpy.median(inside), numpy.median(timed.samples_ns) / 1e6)
"""


def main(arguments: list[str]) -> None:
    """Measure, write results/measurement.json, print what was found."""
    asked = _asked(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = asked.model or exported(MODEL, Path(folder))
        found = results(model, asked, Path(folder))
    if asked.write:
        write_text(RESULTS / "measurement.json", json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(found))


def results(model: Path, asked: argparse.Namespace, folder: Path) -> Json:
    """Interleave rounds of every way to measure the file; give the medians of each, and what they say."""
    quick = presets.find_preset("quick")
    warm_up = dataclasses.replace(quick.warm_up, min_seconds=asked.seconds / 5)
    alone = dataclasses.replace(quick, name="bench", min_seconds=asked.seconds, warm_up=warm_up)
    preset = dataclasses.replace(alone, repeats=presets.find_preset("standard").repeats)
    given = feeds_for(model, None, {}).inputs
    np.savez(folder / "inputs.npz", allow_pickle=False, **given)
    ours, unwatched, bare, openvino = [], [], [], []
    for _ in range(asked.rounds):
        how = {"device": "local", "threads": asked.threads}
        ours.append(measure_file(model, **how, preset=preset))
        bare += _medians_ms([sys.executable, "-c", BARE], model, folder, asked)
        unwatched.append(measure_file(model, **how, preset=alone, observe=False)["latency_ms"]["p50"])
        if asked.openvino:
            openvino.append(openvino_round(asked.openvino, model, folder, asked))
    medians = [record["latency_ms"]["p50"] for record in ours]
    return {
        "model": model.name,
        "rounds": asked.rounds,
        "seconds": asked.seconds,
        "threads": asked.threads,
        "ours_ms": medians,
        "intervals_ms": [[record["latency_ms"][f"p50_{end}"] for end in ("lo", "hi")] for record in ours],
        "verdicts": [record["verdict"] for record in ours],
        "bare_ms": bare,
        "unwatched_ms": unwatched,
        "openvino_ms": openvino,
        **findings(ours, bare, unwatched, openvino),
        **{key: provenance()[key] for key in ("git_commit", "machine", "versions")},
    }


def findings(ours: list[Json], bare: list[float], unwatched: list[float], openvino: list[Json]) -> Json:
    """What the rounds say, in percent: see `table`."""
    medians = [record["latency_ms"]["p50"] for record in ours]
    tables, singles = ([record["latency_ms"] for record in records] for records in (ours, [r["runs"][0] for r in ours]))
    added_ns = clock_cost_ns()
    return {
        "against_bare_percent": _apart(medians, bare),
        "observer_percent": _apart(medians, unwatched),
        "added_ns": added_ns,
        "added_percent": 100 * added_ns / (statistics.median(medians) * 1e6),
        "neighbours_agree_percent": _agree_percent(tables),
        "single_processes_agree_percent": _agree_percent(singles),
        "against_openvino_percent": _apart(*([one[key] for one in openvino] for key in ("inside_ms", "tool_ms"))),
        "around_openvino_percent": _apart(*([one[key] for one in openvino] for key in ("ours_ms", "inside_ms"))),
    }


def _agree_percent(tables: list[Json]) -> float | None:
    """Of neighbours in time: how many have medians' intervals that meet."""
    agree = [
        one["p50_lo"] <= other["p50_hi"] and other["p50_lo"] <= one["p50_hi"]
        for one, other in itertools.pairwise(tables)
    ]
    return 100 * sum(agree) / len(agree) if agree else None


def clock_cost_ns() -> float:
    """What reading the clock adds to a sample: the median sample of a call that does nothing."""
    return float(np.median(time_calls(lambda images: None, [0], min_seconds=0.2, min_count=1000).samples_ns))


def openvino_round(python: Path, model: Path, folder: Path, asked: argparse.Namespace) -> Json:
    """OpenVINO's runtime, timed by its `benchmark_app` and by our loop, both in the virtual environment of `python`.

    `tool_ms`, and `inside_ms` in our loop, are the request's own latency; `ours_ms` is our clock around the call.
    """
    agent = folder / AGENT
    agent.write_bytes(agent_archive())
    inside, ours = _medians_ms([str(python), "-c", OPENVINO, str(agent)], model, folder, asked)
    tool = [str(python.parent / "benchmark_app"), "-m", str(model), "-d", "CPU", "-api", "sync", "-hint", "none"]
    tool += ["-nstreams", "1", "-nthreads", str(asked.threads), "-t", str(max(1, round(asked.seconds)))]
    tool += ["-shape", _shapes_told(model), "-ip", "f32"]
    printed = _output(tool)
    found = re.search(r"Median:\s+([\d.]+)\s*(ms|us)", printed)
    if not found:
        raise UserError("E_BENCH", f"{tool[0]}: printed no median: is openvino installed there with its tools?")
    return {"ours_ms": ours, "inside_ms": inside, "tool_ms": float(found[1]) / {"ms": 1, "us": 1e3}[found[2]]}


def table(found: Json) -> str:
    """Each claim, its bound, what was seen."""
    claims = [
        ("median against a bare ONNX Runtime loop", "within 3 %", found["against_bare_percent"]),
        ("what our clock adds to a call", "under 1 %", found["added_percent"]),
        ("what the sampler adds to the median", "under 1 %", found["observer_percent"]),
        (
            "neighbouring runs of three processes whose intervals meet",
            "90 % or more",
            found["neighbours_agree_percent"],
        ),
        ("the same of single processes (preset `quick`)", "none", found["single_processes_agree_percent"]),
        ("OpenVINO in our loop against its benchmark_app", "within 3 %", found["against_openvino_percent"]),
        ("our clock around the call against OpenVINO's inside it", "none", found["around_openvino_percent"]),
    ]
    lines = ["| claim | bound | seen |", "|---|---|---:|"]
    lines += [
        f"| {what} | {bound} | {'not run' if seen is None else f'{seen:.2f} %'} |" for what, bound, seen in claims
    ]
    counts = {verdict: found["verdicts"].count(verdict) for verdict in ("VALID", "WARN", "INVALID")}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return "\n".join([*lines, "", f"{found['model']}, {found['rounds']} rounds of {found['seconds']:g} s: {told}.", ""])


def _apart(ones: list[float], others: list[float]) -> float | None:
    """Percent by which the first are above the second, the median over rounds: neighbours in time are compared."""
    return statistics.median(100 * (one / other - 1) for one, other in zip(ones, others, strict=True)) if ones else None


def _medians_ms(command: list[str], model: Path, folder: Path, asked: argparse.Namespace) -> list[float]:
    """The numbers in the last line that the program prints."""
    numbers = [str(asked.threads), str(asked.seconds / 5), str(asked.seconds)]
    last = _output([*command, str(model), str(folder / "inputs.npz"), *numbers]).strip().splitlines()[-1]
    return [float(word) for word in last.split()]


def _shapes_told(model: Path) -> str:
    """Every size of every input, as benchmark_app wants them: those of one call."""
    shapes = {name: array.shape[1:] for name, array in feeds_for(model, None, {}).inputs.items()}
    return ",".join(f"{name}[{','.join(map(str, shape))}]" for name, shape in shapes.items())


def _output(command: list[str]) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise UserError("E_BENCH", f"{command[0]}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout


def _asked(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(prog="python -m bench.measurement", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="an ONNX file; by default a WRN-40-2 with random weights")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=3.0, help="timed a process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--openvino", type=Path, help="python of a virtual environment with openvino")
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
