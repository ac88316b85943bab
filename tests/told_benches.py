"""What docs/results.md tells of the benches of speed, clock, files and scale, computed from their results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

from bench import rows
from bench.scale import STRAIGHT
from deploy.statistics import interval_ranks

WORDS = {2: "two", 5: "five", 6: "six", 7: "seven", 8: "eight", 12: "twelve"}


def results_of(name: str) -> Any:
    return json.loads((rows.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def int8() -> Iterator[str]:
    sqnr: dict[str, dict[str, list[float]]] = {}
    made = rows.read("quantizers")
    for row in (row for row in made if row["remainder"] == "fp32"):
        name = row["method"] if row["quantizer"] == "onnxruntime" else "modelopt"
        sqnr.setdefault(row["network"], {}).setdefault(name, []).append(row["sqnr_db"])
    large = {name: max(found) for name, found in sqnr.pop("resnet56, cifar100").items()}
    assert large["mse"] == max(large.values())
    behind = [max(found["modelopt"]) - max(found["mse"]) for found in sqnr.values()]
    yield f"CIFAR-100: {large['mse']:.1f} dB; Model-Optimizer {large['modelopt']:.1f}), "
    yield f"{min(behind):.0f} to {max(behind):.0f} dB behind Model-Optimizer on {WORDS[len(behind)]} smaller networks"
    mse = ("resnet56, cifar100", "onnxruntime", "mse", "fp16")
    keys = ("network", "quantizer", "method", "remainder")
    before, now = (row for row in made if tuple(row[key] for key in keys) == mse)
    gain = f"{now['sqnr_db']:.1f} dB in that of {before['sqnr_db']:.1f}"
    yield f"{now['num_q']} pairs in the place of {before['num_q']}, {gain}"


def speed() -> Iterator[str]:
    found = results_of("speed")
    yield f"runs {found['kd_epoch_ratio_vs_torchdistill']:.2f} times as fast as torchdistill's losses"
    yield f"alone {found['input_pipeline_ratio_vs_pil']:.1f} times as fast, on one core"
    yield f"a step of ReviewKD {found['reviewkd_step_ratio_vs_torchdistill']:.2f} times as fast"
    yield f"a step of AFPKD costs {found['afpkd_step_over_kd_step']:.2f} of KD's"
    yield f"is {found['freq_loss_ratio_vs_naive']:.0f} times as fast as a form that copies the maps"
    assert round(found["freq_loss_memory_ratio_vs_naive"]) == 6  # "in a sixth of the memory"
    yield f"ratio medians of {WORDS[found['conditions']['rounds']]} interleaved rounds"


def clock() -> Iterator[str]:
    found = results_of("measurement")
    agree = [round(0.2 * found[f"{kind}_agree_percent"]) for kind in ("neighbours", "single_processes")]
    assert found["against_bare_percent"] < 0 < found["around_openvino_percent"]
    bare = _ends([100 * (a / b - 1) for a, b in zip(found["ours_ms"], found["bare_ms"], strict=True)])
    sampler = _ends([100 * (a / b - 1) for a, b in zip(found["ours_ms"], found["unwatched_ms"], strict=True)])
    tool = _ends([100 * (each["inside_ms"] / each["tool_ms"] - 1) for each in found["openvino_ms"]])
    yield f"{-found['against_bare_percent']:.1f} % below that of a bare ONNX Runtime loop (95 %: {bare})"
    yield f"reading the clock adds {found['added_percent']:.2f} % to a call"
    yield f"the sampler {found['observer_percent']:.1f} % ({sampler})"
    middle = statistics.median(found["ours_ms"])
    held = sum(low <= middle <= high for low, high in found["intervals_ms"])
    yield f"hold the median of all rounds in {held} of {found['rounds']} cases"
    yield f"agree within their intervals in {agree[0]} of 20 cases"
    yield f"of single processes, as the preset `quick` has them, in {agree[1]}"
    yield f"{found['against_openvino_percent']:.1f} % apart ({tool})"
    yield f"Python's call adds {found['around_openvino_percent']:.0f} % around it"
    yield f"{found['rounds']} interleaved rounds"


def _ends(percents: list[float]) -> str:
    """The 95 % interval of their median, by ranks."""
    low, high = interval_ranks(len(percents), 50)
    ordered = sorted(percents)
    return f"{ordered[low - 1]:+.1f} to {ordered[high - 1]:+.1f} %".replace("-", "−")


def crash() -> Iterator[str]:
    found = results_of("crash")
    begun = [one["killed"].split()[0] for one in found["each"]]  # "the run", "snakemake 2 mtime ...", "pipeline ..."
    run, snakemake = begun.count("the"), begun.count("snakemake")
    yield f"{found['kills']} SIGKILLs at random moments of whole runs ({run} of the run itself, "
    yield f"{snakemake} of Snakemake's processes, {len(begun) - run - snakemake} of a stage"
    assert (found["faults"], found["left_alive"], found["tracebacks"]) == (0, 0, 0)
    assert found["runs_bit_equal"] == found["runs_ended"]
    yield f"All {WORDS[found['runs_ended']]} runs, continued to their end, gave the bytes of one that was never killed"


def scale() -> Iterator[str]:
    found = results_of("scale")
    report, nothing = ([point["seconds"] for point in found[name]["points"]] for name in ("report", "nothing to do"))
    grown = [one for one in found.values() if isinstance(one, dict) and "lines" in one]
    assert all(fitted["deviation"] <= STRAIGHT for one in grown for fitted in one["lines"].values())  # "straight lines"
    assert nothing[-1] <= found["goal_s"]
    yield f"A step of AFPKD takes {1000 * found['step, batch']['lines']['seconds']['slope']:.1f} ms more per image"
    yield f"with the levels (1 to 8: {found['step, levels']['lines']['seconds']['slope']:.2f} s each)"
    yield f"a report of 1,000 measured files takes {report[-1]:.1f} s against {report[0]:.1f} s for 10"
    yield f"a run with nothing to do takes {nothing[0]:.1f} s for one recipe and {nothing[-1]:.1f} s for 100"
