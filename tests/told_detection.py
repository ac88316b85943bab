"""What docs/results.md tells of the detectors, computed from the rows: see test_numbers.py."""

from __future__ import annotations

from collections.abc import Iterator

from afpkd.record import Json
from bench import detection, rows
from pipeline.recipe_reader import load_recipe

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
THREE = "none", "imitation", "afpkd"
NAMES = {"imitation": "imitation", "reviewkd": "ReviewKD", "afpkd": "AFPKD"}


def sentences() -> Iterator[str]:
    """docs/results.md."""
    trials, recipe = rows.read(detection.TUNING), load_recipe(detection.PROTOCOL.recipe)[1]
    rates = {row["options"]["lr"]: row["heldout_ap"] for row in trials if row["method"] == "none"}
    assert tuple(sorted(rates)) == RATES
    assert recipe.distill.lr == max(rates, key=rates.__getitem__) == 8e-3
    yield ", ".join(f"{rates[rate]:.1f}" for rate in RATES)
    raw = [row for row in trials if row["method"] == "reviewkd" and "relative" not in row["options"]]
    assert [row["options"] for row in raw] == [{"lr": 8e-3, "gamma": gamma} for gamma in (0.001, 0.003, 0.01)]
    yield f"from {rates[8e-3]:.1f} down to"
    assert {row["epochs"] for row in trials} == {7.5}
    yield "7.5 epochs"
    harmed = [f"{row['heldout_ap']:.1f}" for row in raw]
    yield f"{', '.join(harmed)} at `gamma` 0.001, 0.003, 0.01"
    yield from _whole_runs()
    for method, name in NAMES.items():
        mine = [row for row in trials if row["method"] == method and row["options"].get("relative")]
        assert {row["options"]["gamma"] for row in mine} == set(detection.GAMMAS)
        assert {row["machine"] for row in mine} == {"NVIDIA H200"}
        assert detection.why_not_chosen(mine) is None
        scores = [row["heldout_ap"] for row in mine]
        yield f"{name} {min(scores):.1f} to {max(scores):.1f}"
        best = max(mine, key=lambda row: row["heldout_ap"])["options"]
        assert _weights(
            recipe.distill.options() if method == "afpkd" else vars(getattr(recipe.rivals, method))
        ) == _weights(best)


def _whole_runs() -> Iterator[str]:
    here, there = (rows.read(detection.protocol_on(on).result) for on in ("cpu", "cuda"))
    yield " ".join(detection.table(here).split())
    assert {(row["method"], row["seed"]) for row in here} == {(name, seed) for name in THREE for seed in range(3)}
    test, heldout = ({name: _by_seed(here, name, key) for name in THREE} for key in ("ap", "heldout_ap"))
    apart = [rows.paired_difference(found["afpkd"], found["none"]).replace("-", "−") for found in (test, heldout)]
    yield f"AFPKD lies {apart[0]} AP from the undistilled student, {apart[1]} on the held-out images"
    assert {row["method"] for row in there} == {"none"}, "the page says so"
    yield f"undistilled {rows.mean_and_std([row['ap'] for row in there])} on that H200"


def _by_seed(found: list[Json], method: str, key: str) -> dict[int, float]:
    return {row["seed"]: row[key] for row in found if row["method"] == method}


def _weights(options: Json) -> list[float | None]:
    return [options.get(key) for key in ("relative", "mu", "gamma")]
