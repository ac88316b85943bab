"""Two runs, or two profile records, side by side: what got worse, beyond a threshold and beyond chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.errors import UserError
from afpkd.names import in_words
from afpkd.record import Json, read_record
from pipeline.recorded import recorded
from pipeline.report.candidates import BROKEN, Estimate, accuracy_of_profile, latency_of, metric_of
from pipeline.report.conditions import Conditions, conditions_of, unlike
from pipeline.report.findings import ratio_of
from pipeline.report.records import read_profile
from pipeline.report.wording import NONE

_NORMAL_95 = 1.959964  # quantile 0.975 of the normal distribution


class Outcome(StrEnum):
    """What can be said of a change."""

    worse = "worse"
    better = "better"
    same = "same"
    undecided = "undecided"


class Change(NamedTuple):
    """One quantity of one file: before, after, and the change with its 95 % interval (percent; accuracy: points)."""

    name: str
    quantity: str
    before: float | None
    after: float | None
    change: Estimate | None
    outcome: Outcome
    note: str = ""


class Profile(NamedTuple):
    """A profile record, and where it lies: its samples lie beside it."""

    path: Path
    record: Json

    @property
    def role_folder(self) -> Path | None:
        """Where its network and bundle lie, in a run's folder; None elsewhere."""
        above = self.path.resolve().parents
        return above[2] / str(self.record["role"]) if len(above) > 2 else None

    @property
    def bundle(self) -> Path | None:
        """The bundle that was measured; None where that is not known."""
        return self.role_folder and self.role_folder / "bundle"


def compare_runs(before: Path, after: Path, *, threshold: float, max_drop: float) -> list[Change]:
    """Compare every file that `before` measured; each is a run's folder or a profile record.

    threshold: percent that p50, p90 and the file may grow; max_drop: points of top-1 that may be lost. Worse: past
    that, and the interval of the change leaves out 0. Undecided: past that but within chance or without an interval,
    INVALID on a side, measured by other rules or on other test images, or not measured any more. UserError: nothing to
    compare.
    """
    old, new = _profiles(before), _profiles(after)
    if before.is_file() and after.is_file():
        old, new = {"": next(iter(old.values()))}, {"": next(iter(new.values()))}
    changes: list[Change] = []
    for key, profile in old.items():
        gone = [side for side in (profile, new.get(key, profile)) if side.record["stale"]]
        if gone:
            note = f"{gone[0].path}: {gone[0].record['reasons'][0]}"
            changes.append(Change(key or _name(profile), "all", None, None, None, Outcome.undecided, note))
        elif key in new:
            changes += _changes(key, profile, new[key], threshold, max_drop)
        else:
            changes.append(Change(key, "all", None, None, None, Outcome.undecided, f"not measured in {after}"))
    if not old.keys() & new.keys():
        raise UserError(
            "E_COMPARE", f"{before} and {after} have no file in common (device, role, precision): nothing to compare"
        )
    return changes


def _profiles(path: Path) -> dict[str, Profile]:
    files = [path] if path.is_file() else sorted(path.glob("profiles/*/[!.]*.json"))
    found = {}
    for file in files:
        record = read_profile(file)
        found[_key(record)] = Profile(file, record)
    if not found:
        raise UserError(
            "E_RUN_MISSING", f"{path}: no profiles there: name a run's folder (runs/<recipe>) or a profile record"
        )
    return found


def _key(record: Json) -> str:
    return " ".join([*filter(None, (record["role"], record["precision"])), "on", record["device"]])


def _changes(key: str, old: Profile, new: Profile, threshold: float, max_drop: float) -> Iterator[Change]:
    name = key or f"{_name(old)} -> {_name(new)}"
    doubt = _doubt(old.record, new.record)
    if broken := _broken(new.record):
        yield Change(name, "golden check", None, None, None, Outcome.worse, broken)
    for percentile in ("p50", "p90"):
        before, after = latency_of(old.record, percentile), latency_of(new.record, percentile)
        if before is None and after is None:
            continue
        yield _latency_change(name, f"{percentile} (ms)", before, after, threshold, doubt)
    scores = accuracy_of_profile(old.record), accuracy_of_profile(new.record)
    if scores[0] and scores[1] and metric_of(old.record) == metric_of(new.record):
        yield _accuracy_change(name, old, new, (scores[0], scores[1]), max_drop)
    before_bytes, after_bytes = old.record.get("size_bytes"), new.record.get("size_bytes")
    if before_bytes and after_bytes:
        grown = 100 * (after_bytes / before_bytes - 1)
        exact = Estimate(grown, grown, grown)
        yield Change(name, "size (bytes)", before_bytes, after_bytes, exact, _outcome(exact, threshold))


def _name(profile: Profile) -> str:
    return profile.path.stem


def _broken(new: Json) -> str:
    """Say that the file does not compute what was trained, whichever process saw it; empty where none did."""
    told = [reason for reason in new["reasons"] if reason.startswith(BROKEN)]
    if any(not check["ok"] for check in new.get("golden", {}).values() if check):
        told.append("golden mismatch: the file does not compute what was trained")
    return next(iter(told), "")


def _doubt(old: Json, new: Json) -> str:
    """Why latencies of the two do not compare; empty where they do."""
    for words, record in (("before", old), ("after", new)):
        if record["verdict"] == "INVALID":
            return f"{words}: INVALID: {'; '.join(record['reasons'])}"
    same_precision = old["precision"] == new["precision"]
    differing = unlike(*(_rules(record, with_mode=same_precision) for record in (old, new)))
    return f"not measured by the same rules: {differing}" if differing else ""


def _rules(profile: Json, *, with_mode: bool) -> Conditions:
    """Its conditions, and what two records of a report have in common anyway; a mode belongs to its precision."""
    entry = str(profile.get("device_digest") or NONE)[:8]
    mode = {"mode": str(profile.get("mode") or NONE)} if with_mode else {}
    return {"device": profile["device"], **conditions_of(profile), **mode, "entry in devices.toml": entry}


def _latency_change(
    name: str, quantity: str, old: Estimate | None, new: Estimate | None, threshold: float, doubt: str
) -> Change:
    values = old and old.value, new and new.value
    if old is None or new is None:
        return Change(name, quantity, *values, None, Outcome.undecided, doubt or "too few samples on one side")
    ends = (None if end is None else 100 * (end - 1) for end in ratio_of(new, old))
    change = Estimate(*ends)  # type: ignore[arg-type]  # three, and the first is a number
    if doubt:
        return Change(name, quantity, *values, change, Outcome.undecided, doubt)
    return Change(name, quantity, *values, change, _outcome(change, threshold), _note(change))


def _accuracy_change(
    name: str, old: Profile, new: Profile, scores: tuple[Estimate, Estimate], max_drop: float
) -> Change:
    quantity, values = f"{in_words(metric_of(old.record))} (%)", (scores[0].value, scores[1].value)
    if _on_other_images(old, new):
        gap = Estimate(values[1] - values[0])
        return Change(name, quantity, *values, gap, Outcome.undecided, "on other test images")
    paired = paired_points(old.path, new.path, (old.bundle, new.bundle))
    change = paired or independent_points(*scores)
    note = "on the same images" if paired else _note(change)
    return Change(name, quantity, *values, change, _outcome(change.negative(), max_drop), note)


def _on_other_images(old: Profile, new: Profile) -> bool:
    """Whether the two are known to be of different test images; of different data, where only that is known."""
    for first, second in zip(_hashes(old), _hashes(new), strict=True):
        if first and second:
            return first != second
    return False


def _hashes(profile: Profile) -> tuple[str | None, str | None]:
    """Of the bundle's test images, and of the data set that its network saw; None of what is not known."""
    if profile.role_folder is None:
        return None, None
    manifest, trained = profile.role_folder / "bundle" / "manifest.json", profile.role_folder / "record.json"
    facts = read_record(manifest) if manifest.is_file() else {}
    named, hashes = facts.get("evaluation"), facts.get("hashes")
    images = None
    if isinstance(named, dict) and isinstance(hashes, dict):  # it may be a stranger's
        images = hashes.get(str(named.get("images")))
    return images, recorded(trained).get("inputs", {}).get("data") if trained.is_file() else None


def _outcome(growth: Estimate, limit: float) -> Outcome:
    """Judge a growth, where growing is worse."""
    if abs(growth.value) <= limit:
        return Outcome.same
    if growth.low is None or growth.high is None:  # how much is chance is not known; it is not worse, at any rate
        return Outcome.undecided if growth.value > 0 else Outcome.same
    if growth.value > 0:
        return Outcome.worse if growth.low > 0 else Outcome.undecided
    return Outcome.better if growth.high < 0 else Outcome.same


def _note(change: Estimate) -> str:
    return "" if change.low is not None else "no interval recorded: profile again"


def independent_points(old: Estimate, new: Estimate) -> Estimate:
    """Give the difference of accuracies of independent samples (Newcombe 1998, method 10, of Wilson intervals)."""
    gap = new.value - old.value
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return Estimate(gap)
    down = math.hypot(new.value - new.low, old.high - old.value)
    up = math.hypot(new.high - new.value, old.value - old.low)
    return Estimate(gap, gap - down, gap + up)


def paired_points(old: Path, new: Path, bundles: tuple[Path | None, Path | None]) -> Estimate | None:
    """Give the difference of two profiles on the same images, of which most are right or wrong in both: much narrower.

    None where logits are not beside the records or labels not in the bundles, or of which images is not known.
    """
    first, second = (_right(path, bundle) for path, bundle in zip((old, new), bundles, strict=True))
    if first is None or second is None or first[0] != second[0]:
        return None
    right, now = first[1], second[1]
    return points_of_pairs(gained=int((now & ~right).sum()), lost=int((right & ~now).sum()), num=len(right))


def points_of_pairs(*, gained: int, lost: int, num: int) -> Estimate:
    """Give the difference in points of two accuracies on the same `num` images, with its 95 % interval.

    gained, lost: images that only the second, or only the first got right. Agresti and Min (2005): Wald's interval
    with half an image added to each of the four cells.
    """
    more, less, total = gained + 0.5, lost + 0.5, num + 2
    centre = (more - less) / total
    spread = _NORMAL_95 * math.sqrt(more + less - (more - less) ** 2 / total) / total
    return Estimate(100 * (gained - lost) / num, 100 * (centre - spread), 100 * (centre + spread))


def _right(record: Path, bundle: Path | None) -> tuple[str, NDArray[np.bool_]] | None:
    """The evaluated images' hash, and which of them the file got right; None of a detector. UserError."""
    samples = record.with_suffix(".npz")
    if bundle is None or not (bundle / "manifest.json").is_file() or not samples.is_file():
        return None
    manifest = read_record(bundle / "manifest.json")
    if manifest.get("task") == "detection":
        return None
    try:
        named = manifest["evaluation"]
        images, path = manifest["hashes"].get(named["images"]), bundle / named["labels"]
        with np.load(samples, allow_pickle=False) as arrays:
            logits = arrays.get("logits")
        if logits is None or not isinstance(images, str) or not path.is_file():
            return None
        labels = np.load(path, allow_pickle=False)
        return (images, logits.argmax(axis=1) == labels) if len(logits) == len(labels) else None
    except Exception as error:  # a stranger's manifest and arrays: numpy and zipfile raise a dozen kinds
        told = f"the samples {samples} or the labels of {bundle} are not of our form ({error})"
        raise UserError("E_RECORD", f"{record}: {told}: measure it again") from None
