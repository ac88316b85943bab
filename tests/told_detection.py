"""What docs/results.md tells of the detectors' trials, computed from the rows: see test_numbers.py."""

from __future__ import annotations

from collections.abc import Iterator

from bench import detection, rows

LOW_RATE = 1e-3


def sentences() -> Iterator[str]:
    """docs/results.md, as long as there are trials alone."""
    assert not rows.read(detection.PROTOCOL.result), "with rows of whole runs the page must tell of those"
    found = rows.read(detection.TUNING)
    assert {row["machine"] for row in found} == {"NVIDIA H200"}
    assert len(found) == 14
    rates = {row["options"]["lr"]: row["heldout_ap"] for row in found if row["method"] == "none"}
    low, high = sorted(rates)
    assert (low, high) == (LOW_RATE, 2e-3)  # the others' trials are at the first, the recipe's
    yield f"{rates[high]:.1f} at 2e-3 against {rates[low]:.1f} at 1e-3"
    for method, said in (("imitation", "imitation's six weights {} to {}"), ("afpkd", "AFPKD's {} to {}")):
        scores = [row["heldout_ap"] for row in found if row["method"] == method]
        assert len(scores) == 6
        yield said.format(f"{min(scores):.1f}", f"{max(scores):.1f}")
    best = max((row for row in found if row["method"] == "afpkd"), key=lambda row: row["heldout_ap"])
    assert best["options"]["gamma"] == min(detection.GAMMAS)  # "the best of them is the smallest"
