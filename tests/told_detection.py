"""What docs/results.md tells of the detectors' trials, computed from the rows: see test_numbers.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bench import detection, rows
from pipeline.recipe_reader import load_recipe

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
LOW_RATE = RATES[0]


def sentences() -> Iterator[str]:
    """docs/results.md, as long as there are trials alone."""
    assert not rows.read(detection.PROTOCOL.result), "with rows of whole runs the page must tell of those"
    found = rows.read(detection.TUNING)
    assert Counter(row["machine"] == "NVIDIA H200" for row in found) == {True: 14, False: len(RATES) - 2}
    rates = {row["options"]["lr"]: row["heldout_ap"] for row in found if row["method"] == "none"}
    assert tuple(sorted(rates)) == RATES
    assert {row["options"]["lr"] for row in found if row["method"] != "none"} == {LOW_RATE}
    yield ", ".join(f"{rates[rate]:.1f}" for rate in RATES)
    for method, said in (("imitation", "imitation's six weights {} to {}"), ("afpkd", "AFPKD's {} to {}")):
        scores = [row["heldout_ap"] for row in found if row["method"] == method]
        assert len(scores) == 6
        yield said.format(f"{min(scores):.1f}", f"{max(scores):.1f}")
    best = max((row for row in found if row["method"] == "afpkd"), key=lambda row: row["heldout_ap"])
    assert best["options"]["gamma"] == min(row["options"].get("gamma", 1) for row in found)  # "is the smallest"
    assert load_recipe(detection.PROTOCOL.recipe)[1].distill.lr == max(rates, key=rates.__getitem__) == 8e-3
