"""Do our intervals hold what they promise? Trials on known distributions: coverage, and what drift does (minutes)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm

from afpkd.record import Json, write_text
from bench.command import run
from bench.rows import RESULTS
from deploy.series import drift
from deploy.statistics import latency_ms, smallest_count

TRIALS = 2000
COUNT = 2010  # of the preset `standard`
SHARES = {50: 0.50, 90: 0.90, 99: 0.99}
MINIMUM_COUNTS = {90: 64, 95: 130, 99: 662}
"""MLPerf's own: mlperf.conf, and what LoadGen prints."""

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
"""(rng, count) -> uniform numbers in (0, 1), in order: a latency is a distribution's inverse of them."""

_MS = 1e6


def main(trials: int = TRIALS) -> None:
    """Run every trial, write results/coverage.json, print the table."""
    found = results(trials)
    write_text(RESULTS / "coverage.json", json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(found))


def results(trials: int) -> Json:
    """Give coverage of independent and dependent samples, drift flagged, false alarms, and MLPerf's minimum counts."""
    return {
        "trials": trials,
        "count": COUNT,
        "independent": {
            name: coverage(independent, inverse, trials, seed=seed)
            for seed, (name, inverse) in enumerate(DISTRIBUTIONS.items())
        },
        "dependent": {f"rho {rho}": coverage(autoregressive(rho), DISTRIBUTIONS["log-normal"], trials) for rho in RHOS},
        "drifting": {f"{percent} %": flagged(independent, trials, percent=percent) for percent in (5, 10, 20)},
        "false_alarms": {
            "independent": flagged(independent, trials, percent=0),
            **{f"rho {rho}": flagged(autoregressive(rho), trials, percent=0) for rho in RHOS},
        },
        "minimum_counts": {str(percentile): smallest_count(percentile) for percentile in MINIMUM_COUNTS},
    }


def coverage(draw: Draw, inverse: Callable[[Any], Any], trials: int, *, seed: int = 0) -> Json:
    """Percent of the trials whose interval holds the true percentile, of those that gave one; and that share."""
    held, given = dict.fromkeys(SHARES, 0), dict.fromkeys(SHARES, 0)
    truth = {percentile: float(inverse(share)) for percentile, share in SHARES.items()}
    for trial in range(trials):
        samples = (inverse(draw(np.random.default_rng([seed, trial]), COUNT)) * _MS).astype(np.int64)
        numbers = latency_ms(samples)
        for percentile, true in truth.items():
            low, high = numbers[f"p{percentile}_lo"], numbers[f"p{percentile}_hi"]
            if low is not None and high is not None:
                given[percentile] += 1
                held[percentile] += low <= true <= high
    return {
        f"p{percentile}": {
            "covers_percent": round(100 * held[percentile] / given[percentile], 2) if given[percentile] else None,
            "given_percent": round(100 * given[percentile] / trials, 2),
        }
        for percentile in SHARES
    }


def flagged(draw: Draw, trials: int, *, percent: float) -> float:
    """Percent of the trials in which a latency that moves by `percent` over the run is called drifting for certain."""
    ramp = 1 + percent / 100 * np.linspace(-0.5, 0.5, COUNT)
    found = 0
    for trial in range(trials):
        latencies = DISTRIBUTIONS["log-normal"](draw(np.random.default_rng(trial), COUNT)) * ramp
        moved = drift((latencies * _MS).astype(np.int64))
        found += moved is not None and moved.certain
    return round(100 * found / trials, 2)


def independent(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Uniform numbers that know nothing of each other."""
    return rng.uniform(size=count)


def autoregressive(rho: float) -> Draw:
    """Uniform numbers whose normal scores are a first-order autoregression: neighbours correlate with `rho`."""

    def draw(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        settled = 1000  # dropped: the series starts at 0
        scores = lfilter([np.sqrt(1 - rho**2)], [1, -rho], rng.normal(size=count + settled))[settled:]
        uniform: NDArray[np.float64] = norm.cdf(scores)
        return uniform

    return draw


def table(found: Json) -> str:
    """Markdown: a line a distribution."""
    lines = ["| samples | p50 | p90 | p99 |", "|---|---:|---:|---:|"]
    for group in ("independent", "dependent"):
        for name, row in found[group].items():
            cells = [_cell(row[f"p{percentile}"]) for percentile in SHARES]
            lines.append(f"| {group}, {name} | {' | '.join(cells)} |")
    drifts = ", ".join(f"{name}: {share} %" for name, share in found["drifting"].items())
    alarms = ", ".join(f"{name}: {share} %" for name, share in found["false_alarms"].items())
    return "\n".join([*lines, "", f"Drift called certain: {drifts}.", f"Without any: {alarms}.", ""])


def _cell(row: Json) -> str:
    given = "" if row["given_percent"] == 100 else f" (where given: {row['given_percent']:.0f} %)"
    return f"{row['covers_percent']:.1f} %{given}" if row["covers_percent"] is not None else "-"


def _bimodal(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seven calls in ten around 1 ms, three around 1.6 ms."""
    uniform = np.asarray(uniform)
    fast = norm.ppf(np.clip(uniform / 0.7, 1e-12, 1 - 1e-12), 1.0, 0.02)
    slow = norm.ppf(np.clip((uniform - 0.7) / 0.3, 1e-12, 1 - 1e-12), 1.6, 0.02)
    latencies: NDArray[np.float64] = np.where(uniform < 0.7, fast, slow)
    return latencies


RHOS = (0.5, 0.8, 0.9)

DISTRIBUTIONS: dict[str, Callable[[Any], Any]] = {
    "normal": lambda uniform: norm.ppf(uniform, 1.0, 0.05),
    "log-normal": lambda uniform: np.exp(norm.ppf(uniform, 0.0, 0.2)),
    "bimodal": _bimodal,
}
"""Inverse distribution functions, in ms."""

if __name__ == "__main__":
    run(lambda arguments: main(*map(int, arguments)))
