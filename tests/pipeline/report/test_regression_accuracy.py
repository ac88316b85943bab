"""Accuracies of two runs: paired on the same images, exact coverage of the interval, none across images."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from afpkd.errors import UserError
from afpkd.record import Json, write_record
from pipeline.report.regression import Outcome, points_of_pairs
from tests.pipeline.conftest import HandMadeRun, bundle_manifest
from tests.pipeline.report.comparing import change_profile, compared, one


def test_accuracy_without_logits_takes_newcombes_interval(runs: tuple[Path, Path]) -> None:
    change_profile(runs[1], top1=83.9)  # from 86.4, each ± 0.5
    found = one(compared(runs), "top-1 (%)")
    assert found.change is not None
    assert found.change == pytest.approx((-2.5, -2.5 - 0.5 * 2**0.5, -2.5 + 0.5 * 2**0.5))
    assert found.outcome is Outcome.worse
    assert one(compared(runs, max_drop=2.5), "top-1 (%)").outcome is Outcome.same


def test_accuracy_on_other_data_is_undecided(runs: tuple[Path, Path]) -> None:
    change_profile(runs[1], top1=60.0)
    for folder, data in zip(runs, ("aa", "bb"), strict=True):
        HandMadeRun(folder).put_record("student", inputs={"data": data * 32})
    found = one(compared(runs), "top-1 (%)")
    assert (found.outcome, found.note) == (Outcome.undecided, "on other test images")


def test_accuracy_on_the_same_images_is_paired(runs: tuple[Path, Path]) -> None:
    labels = np.arange(1000) % 10
    for folder, wrong in zip(runs, (range(100), range(100, 220)), strict=True):
        predictions = labels.copy()
        predictions[list(wrong)] += 1
        np.savez(folder / "profiles" / "local" / "student-fp32.npz", logits=np.eye(11)[predictions])
        bundle = folder / "student" / "bundle"
        bundle.mkdir(parents=True, exist_ok=True)
        np.save(bundle / "eval_labels.npy", labels)
        manifest = {**bundle_manifest("bb" * 32), "hashes": {"eval.npy": "aa" * 32}}
        write_record(bundle / "manifest.json", manifest)
    found = one(compared(runs, max_drop=1.5), "top-1 (%)")
    assert found.note == "on the same images"
    assert found.change == points_of_pairs(gained=100, lost=120, num=1000)
    assert found.change is not None
    assert found.change.value == -2.0
    assert found.outcome is Outcome.undecided
    manifest["hashes"] = {"eval.npy": "bb" * 32}
    write_record(runs[1] / "student" / "bundle" / "manifest.json", manifest)
    found = one(compared(runs, max_drop=0.5), "top-1 (%)")
    assert (found.outcome, found.note) == (Outcome.undecided, "on other test images")
    bundle = runs[1] / "student" / "bundle"
    after = {"score": 0.05, "iou": 0.6, "candidates": 1000, "most": 100}
    detects: Json = {"task": "detection", "postprocessing": after, "torch_ap": {}}
    write_record(bundle / "manifest.json", {**manifest, "hashes": {"eval.npy": "aa" * 32}, **detects})
    assert one(compared(runs), "top-1 (%)").note == "", "boxes have no right class"
    write_record(bundle / "manifest.json", {**manifest, **detects})
    assert one(compared(runs), "top-1 (%)").note == "on other test images", "of boxes, too"
    write_record(bundle / "manifest.json", {**manifest, "hashes": []})
    with pytest.raises(UserError, match=r"manifest\.json: malformed: hashes: \[\] is not of type 'object'"):
        compared(runs)
    write_record(bundle / "manifest.json", {**manifest, "hashes": {"eval.npy": "aa" * 32}})
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,)}"
    path = bundle / "eval_labels.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match=r"are not of our form \(.*\): measure it again"):
        compared(runs)
    path.unlink()
    os.mkfifo(path)
    assert one(compared(runs), "top-1 (%)").note == "", "a pipe is not waited for"


@pytest.mark.parametrize(("more", "less"), [(0.10, 0.10), (0.02, 0.05), (0.01, 0.30)])
def test_the_paired_interval_covers_95_percent(more: float, less: float) -> None:
    """Exact coverage over every outcome of 100 images that matters, for a known difference."""
    num, truth, covered, weight = 100, 100 * (more - less), 0.0, 0.0
    for gained, lost in product(range(60), range(60)):
        if gained + lost <= num:
            chance = binom.pmf(gained, num, more) * binom.pmf(lost, num - gained, less / (1 - more))
            estimate = points_of_pairs(gained=gained, lost=lost, num=num)
            assert estimate.low is not None
            assert estimate.high is not None
            covered += chance * (estimate.low <= truth <= estimate.high)
            weight += chance
    assert weight > 0.999
    assert 0.93 < covered < 0.985
