"""One process's measurement: by which rules, what came back, and what it shows. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json
from deploy import machine_state, series, statistics
from deploy.presets import Preset
from deploy.verdict import Facts

QUANTITIES = ("gpu", "h2d", "d2h", "enqueue", "pre", "post")
"""Beside `latency_ms`, which is the whole call: see `agent.quantities`."""

_SLOW = 100  # times the median: no network takes that, something stood still


class Run(NamedTuple):
    """One process's measurement: by which rules, what was asked of the clocks, the answer, the arrays."""

    preset: Preset
    clocks: str
    answer: Json
    arrays: dict[str, NDArray[Any]]

    @property
    def passed(self) -> bool:
        """Whether the file computed what it should, before and after."""
        checks: dict[str, Json] = self.answer["golden"]
        return all(check["ok"] for check in checks.values())

    @property
    def samples(self) -> NDArray[np.int64]:
        """Latencies of the single stream in ns, in order."""
        found: NDArray[np.int64] = self.arrays["samples_ns"]
        return found

    @property
    def state(self) -> machine_state.State:
        """What the sampler read."""
        return machine_state.state_of(self.answer["state"], self.arrays)


def course(run: Run) -> Json:
    """What one process's samples show in the order they were taken, and what happened around them."""
    samples, state = run.samples, run.state
    drift, cost = series.drift(samples), _cost(run)
    return {
        "drift_percent": drift and drift.percent,
        "drift_interval_percent": drift and [drift.low, drift.high],
        "wander_percent": series.wander_percent(samples),
        "num_effective": _num_effective(samples),
        "longest_share": _longest_share(samples),
        "steal_cpus": machine_state.steal_share(state),
        "observer": {
            "rate_hz": state.rate_hz,
            "cpu_s": state.cpu_s,
            "cost_percent": cost and cost.percent,
            "cost_interval_percent": cost and [cost.low, cost.high],
            "unwatched_s": machine_state.unwatched_s(state),
        },
        "sensors": machine_state.summary(state),
    }


def quantities_ms(run: Run) -> dict[str, Json | None]:
    """Give `p50`, `p50_lo`, `p50_hi`, `p90` of each part of a call and of what stands around it; None: no such part."""
    found: dict[str, Json | None] = {}
    for name in QUANTITIES:
        samples = run.arrays.get(f"{name}_ns")
        table = None if samples is None or len(samples) == 0 else statistics.latency_ms(samples)
        found[name] = table and {key: table[key] for key in ("p50", "p50_lo", "p50_hi", "p90")}
    return found


def facts_of_run(run: Run, *, runtime: str, threads: int) -> Facts:
    """What its verdict rests on; `runtime` and `threads` are what was asked for (0: the runtime's own number)."""
    timing, samples, state = run.answer["timing"], run.samples, run.state
    cost, clocks = _cost(run), [seen.get("clocks", {}) for seen in _vitals(run)]
    return Facts(
        n=len(samples),
        min_count=run.preset.min_count,
        steady=timing.get("warm_up", {}).get("steady"),
        drift=series.drift(samples),
        wander_percent=series.wander_percent(samples),
        num_effective=_num_effective(samples),
        longest_share=_longest_share(samples),
        golden=[check["ok"] for check in run.answer["golden"].values()],
        foreign_cpus=timing.get("foreign_cpus"),
        num_cpus=run.answer["machine"]["num_cpus"],
        num_inputs=timing.get("num_inputs"),
        steal_cpus=machine_state.steal_share(state),
        slowed_by=_slowed_by(run, "timed"),
        clocks_asked=run.clocks,
        clocks=run.answer["clocks"],
        clocks_free=any(seen.get("locked") is False for seen in clocks),
        gpu_load_percent=_vitals(run)[0].get("gpu_load_percent") if _is_on_gpu(run) else None,
        gpu_processes=_gpu_processes(run),
        wrong_runtime=_wrong_runtime(run.answer["runtime"], runtime, threads),
        observer_low_percent=cost and cost.low,
        unwatched_s=machine_state.unwatched_s(state),
        not_finite=timing.get("outputs", {}).get("not_finite", 0),
        cross_check_percent=_cross_check_percent(run),
    )


def facts_of_scenario(
    facts: Facts, run: Run, name: str, *, golden: Sequence[bool], steady: bool | None, foreign_cpus: float | None
) -> Facts:
    """The same of another scenario of the process: `facts` with its own samples (`<name>_ns`), in its own window."""
    samples, state = run.arrays[f"{name}_ns"], run.state
    return replace(
        facts,
        n=len(samples),
        min_count=0,
        steady=steady,
        drift=series.drift(samples),
        wander_percent=series.wander_percent(samples),
        num_effective=None,
        longest_share=_longest_share(samples),
        golden=golden,
        foreign_cpus=foreign_cpus,
        steal_cpus=machine_state.steal_share(state, name),
        slowed_by=_slowed_by(run, name),
        unwatched_s=machine_state.unwatched_s(state, name),
    )


def _slowed_by(run: Run, window: str) -> list[str]:
    clocks = [seen.get("clocks", {}) for seen in _vitals(run)]
    gpus = sorted((gpu for seen in clocks for gpu in seen.get("gpu", ())), key=lambda gpu: float(gpu["max_hz"]))
    highest = {gpu["name"]: gpu["max_hz"] for gpu in gpus}
    return machine_state.slowed_by(run.state, window, locked=run.answer["clocks"] == "locked", highest_hz=highest)


def _vitals(run: Run) -> list[Json]:
    """What the device read of itself before and after; `agent.vitals`."""
    return [run.answer["machine"].get(when, {}).get("vitals", {}) for when in ("before", "after")]


def _is_on_gpu(run: Run) -> bool:
    return "GPU" in run.answer["runtime"].get("providers", ())


def _gpu_processes(run: Run) -> list[str]:
    """Who else had the GPU open, `name (pid)`; nobody who would matter where the network runs on CPUs."""
    if not _is_on_gpu(run):
        return []
    found = [process for seen in _vitals(run) for process in seen.get("gpu_processes", ())]
    return list(dict.fromkeys(f"{process['name']} ({process['pid']})" for process in found))


def _wrong_runtime(used: Json, runtime: str, threads: int) -> str | None:
    """What is other than asked for, in words. TensorRT's threads are none of ours."""
    if not used["name"].startswith(runtime):
        return f"{used['name']} ran, {runtime} was asked for"
    if threads and used["threads"] not in (None, threads):
        return f"{used['threads']} threads ran, {threads} were asked for"
    return None


def _cost(run: Run) -> machine_state.Cost | None:
    begun = run.arrays.get("begun_ns")
    return None if begun is None else machine_state.observer_cost(run.state, begun, run.samples)


def _cross_check_percent(run: Run) -> float | None:
    theirs, ours = (run.answer.get("cross_check") or {}).get("gpu_p50_ms"), quantities_ms(run)["gpu"]
    return None if theirs is None or not ours or not ours["p50"] else 100 * (theirs / ours["p50"] - 1)


def _num_effective(samples: NDArray[np.int64]) -> float | None:
    return series.num_effective(samples, statistics.nearest_rank(samples, 50)) if len(samples) else None


def _longest_share(samples: NDArray[np.int64]) -> float | None:
    if len(samples) == 0:
        return None
    return float(samples[samples > _SLOW * np.median(samples)].sum() / samples.sum())
