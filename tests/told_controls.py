"""What README.md and docs/ tell of the controls of the masks, computed from the rows: see test_numbers.py."""

from __future__ import annotations

from collections.abc import Iterator

from afpkd.record import Json
from bench import rows
from bench.variants import MAIN

MASKS = ("no mask", "shuffled masks", "band means")
SEEDS = (0, 1)
"""Those of which all three have rows; with more, these sentences must become others."""
SETS = ("test_top1_last", "heldout_top1")


def _row(name: str, seed: int) -> Json:
    (found,) = (row for row in rows.read(MAIN.result) if rows.name_of(row) == name and row["seed"] == seed)
    return found


def _both(name: str, key: str) -> str:
    return " and ".join(f"{_row(name, seed)[key]:.2f}" for seed in SEEDS)


def _listed(values: list[float]) -> str:
    *first, last = (f"{value:.2f}" for value in values)
    return f"{', '.join(first)} and {last}"


def nothing_holds() -> None:
    """Assert that no variant is the best of all seeds and both sets, nor the worst: "no order holds"."""
    for end in (max, min):
        ends = {end(*MASKS, "afpkd", key=lambda name: _row(name, seed)[key]) for seed in SEEDS for key in SETS}
        assert len(ends) > 1, ends


def of_results() -> Iterator[str]:
    """docs/results.md."""
    assert {row["seed"] for row in rows.read(MAIN.result) if rows.name_of(row) in MASKS} == set(SEEDS)
    nothing_holds()
    test, heldout = SETS
    for seed, above in ((0, True), (1, False)):  # README.md: above them with seed 0, below them with seed 1
        assert all((_row("afpkd", seed)[test] > _row(name, seed)[test]) == above for name in MASKS)
    yield f"reaches {'; '.join(_both(name, test) for name in MASKS)} on test, where it has {_both('afpkd', test)}"
    yield f"(and ReviewKD {_both('reviewkd', test)})"
    yield f"held-out images {'; '.join(_both(name, heldout) for name in MASKS)}, where it has {_both('afpkd', heldout)}"
    curves = {rows.name_of(row): row for row in rows.read(f"{MAIN.result}_curves") if row["seed"] == 0}
    norms = {name: curves[name]["epochs"][0]["gradient_norms"]["frequency"] for name in (*MASKS, "afpkd")}
    yield f"after the first epoch of seed 0 ({_listed([norms[name] for name in MASKS])}; {norms['afpkd']:.2f})"


def of_method() -> Iterator[str]:
    """docs/method.md."""
    test, heldout = SETS
    yield f"{_both('band means', test)} against {_both('afpkd', test)} on test"
    yield f"{_both('band means', heldout)} against {_both('afpkd', heldout)} on held-out images"
