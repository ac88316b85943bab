"""What README.md and docs/ tell of the controls of the masks, computed from the rows: see test_numbers.py."""

from __future__ import annotations

from collections.abc import Iterator

from afpkd.record import Json
from bench import rows
from bench.variants import MAIN

MASKS = ("no mask", "shuffled masks", "band means")
SEED = 0
"""The only one of which the controls have rows; with more, these sentences must become others."""


def _row(name: str) -> Json:
    (found,) = (row for row in rows.read(MAIN.result) if rows.name_of(row) == name and row["seed"] == SEED)
    return found


def _listed(values: list[float]) -> str:
    *first, last = (f"{value:.2f}" for value in values)
    return f"{', '.join(first)} and {last}"


def of_results() -> Iterator[str]:
    """docs/results.md."""
    assert {row["seed"] for row in rows.read(MAIN.result) if rows.name_of(row) in MASKS} == {SEED}
    test, heldout = ([_row(name)[key] for name in MASKS] for key in ("test_top1_last", "heldout_top1"))
    own, rival = _row("afpkd"), _row("reviewkd")
    yield f"AFPKD reaches {_listed(test)} on test, where it has {own['test_top1_last']:.2f} with its own"
    yield f"(and ReviewKD {rival['test_top1_last']:.2f})"
    yield f"on the held-out images {_listed(heldout)}, where it has {own['heldout_top1']:.2f}"
    assert sorted(MASKS, key=lambda name: _row(name)["test_top1_last"])[0] == "no mask"
    assert max(*MASKS, "afpkd", key=lambda name: _row(name)["heldout_top1"]) == "no mask"  # "do not agree on the order"
    curves = {rows.name_of(row): row for row in rows.read(f"{MAIN.result}_curves") if row["seed"] == SEED}
    norms = {name: curves[name]["epochs"][0]["gradient_norms"]["frequency"] for name in (*MASKS, "afpkd")}
    yield f"after the first epoch ({_listed([norms[name] for name in MASKS])}; {norms['afpkd']:.2f})"


def of_method() -> Iterator[str]:
    """docs/method.md."""
    banded, own = _row("band means"), _row("afpkd")
    yield f"{banded['test_top1_last']:.2f} against {own['test_top1_last']:.2f} on test"
    yield f"{banded['heldout_top1']:.2f} against {own['heldout_top1']:.2f} on held-out images"
