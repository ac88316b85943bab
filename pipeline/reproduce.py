"""`afpkd reproduce RECORD`: do it again, and see whether the number comes back.

A profile is measured again, same file, device and rules; a network is trained again from its recipe, its teacher and
prompts. Nothing of the run is touched: what is made lies in a folder of its own.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from afpkd.errors import UserError
from afpkd.record import Json, sha256_of
from deploy.profile_record import SCHEMA as PROFILE
from pipeline.lineage import WEIGHTS, require_recorded
from pipeline.networks import arch_of
from pipeline.progress import StageProgress
from pipeline.recipe_reader import recipe_names, teacher_weights
from pipeline.recorded import MEASURED, checked, recorded
from pipeline.report.candidates import Estimate, accuracy_of_profile, latency_of, metric_of
from pipeline.report.regression import independent_points, paired_points
from pipeline.workspace import Run, open_run

CHECKPOINT = "afpkd.checkpoint/1"
NEEDED = {
    PROFILE: (*MEASURED, "outputs", "recipe", "config_digest"),
    CHECKPOINT: (
        *("role", "recipe", "device", "threads", "config_digest"),
        *("inputs", "outputs", "metrics", "versions", "machine"),
    ),
}
"""Schema -> what of its record is read here."""
_OF_A_CALL = ("git_commit", "device", "threads", "processes")


class Found(NamedTuple):
    """One quantity then and now. within: whether the two can be the same; None where that cannot be told."""

    quantity: str
    before: str
    now: str
    within: bool | None
    note: str = ""
    decides: bool = True
    """Whether the record is reproduced only where this is within."""


def exit_code(found: Sequence[Found]) -> int:
    """0: within; 1: not; 3: cannot be told."""
    if any(one.within is False for one in found):
        return 1
    return 0 if all(one.within for one in found if one.decides) else 3


def reproduce(path: Path, recipe: str | None, work: Path) -> list[Found]:
    """Make the record at `path` again in `work`, and compare; UserError where it is no such record or has changed.

    recipe: of what is trained again, where the record's own name is not that of a shipped one.
    """
    record = recorded(path)
    makers: dict[str, Callable[[Path, Json, str | None, Path], list[Found]]] = {
        PROFILE: _measured_again,
        CHECKPOINT: _trained_again,
    }
    schema = str(record.get("schema"))
    if schema not in makers or len(path.resolve().parents) < 3:
        raise UserError(
            "E_RECORD",
            f"{path}: {schema}: neither a profile nor a network's record: name runs/RECIPE/profiles/DEVICE/x.json "
            "or runs/RECIPE/student/record.json",
        )
    checked(record, path, *NEEDED[schema])
    return makers[schema](path.resolve(), record, recipe, work)


def _measured_again(path: Path, record: Json, recipe: str | None, work: Path) -> list[Found]:
    from deploy.measure import Wanted, profile_files

    del recipe  # the bundle says all
    bundle = path.parents[2] / record["role"] / "bundle"
    if not (bundle / "manifest.json").is_file() or sha256_of(bundle / "manifest.json") != record["inputs"].get(
        "manifest.json"
    ):
        raise UserError(
            "E_RUN_CHANGED", f"{path}: {bundle} is not the bundle that was measured: it was exported again, or is gone"
        )
    (again,) = profile_files(
        [Wanted(bundle, record["precision"], work / path.name)],
        device=record["device"],
        preset=record["preset"],
        threads=record["runtime"]["threads_asked"],
        recipe=record["recipe"],
        config_digest=record["config_digest"],
        progress=StageProgress("reproduce").job,
    )
    return profiles_compared(record, again, paired_points(path, work / path.name, (bundle, bundle)))


def profiles_compared(before: Json, now: Json, points: Estimate | None = None) -> list[Found]:
    """Latencies whose 95 % intervals meet are within; accuracies whose difference has 0 in its interval.

    points: that difference on the same images, where their answers are known. p50 is always told: of a record without
    one nothing can be told to come back.
    """
    doubts = [f"{when}: INVALID" for when, row in (("then", before), ("now", now)) if row["verdict"] == "INVALID"]
    found = [_percentile(before, now, name, doubts) for name in ("p50", "p90", "p99")]
    then, again = accuracy_of_profile(before), accuracy_of_profile(now)
    if then and again and metric_of(before) == "ap":
        found.append(_without_interval("AP (%)", then.value, again.value))
    elif then and again:
        found.append(_top1("top-1 (%)", then, again, points))
    return [one for one in found if one.decides or one.before != "-" or one.now != "-"]


def _percentile(before: Json, now: Json, name: str, doubts: Sequence[str]) -> Found:
    values = [_told(row["latency_ms"].get(name), 4) for row in (before, now)]
    then, again = latency_of(before, name), latency_of(now, name)
    within, note = None, "; ".join(doubts) or "no interval: too few samples"
    if not doubts and then and again and None not in (*then, *again):
        within, note = then.meets(again), "95 % intervals"
    return Found(f"{name} (ms)", values[0], values[1], within, note, decides=name == "p50")


def _top1(name: str, then: Estimate, now: Estimate, points: Estimate | None = None) -> Found:
    """Whether two accuracies may be one: by the difference on the same images, or as if of others, which is wider."""
    change = points or independent_points(then, now)
    values = _told(then.value), _told(now.value)
    if change.low is None or change.high is None:
        return Found(name, *values, None, "no interval is known")
    told = f"{change.value:+.2f} points, 95 % {change.low:+.2f} to {change.high:+.2f}"
    return Found(name, *values, change.low <= 0 <= change.high, told + (", image by image" if points else ""))


def _trained_again(path: Path, record: Json, recipe: str | None, work: Path) -> list[Found]:
    stage, run_dir = record["role"], path.parents[1]
    if recipe is None and record["recipe"] not in recipe_names():  # a path in a stranger's record could run his code
        told = f"{path}: made by recipe {record['recipe']!r}, which is not a shipped one: name its file, --recipe FILE"
        raise UserError("E_RECIPE_NAME", told)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", record["device"]):
        raise UserError("E_RECORD", f"{path}: trained on {record['device']!r}, not on cpu or cuda: name another record")
    run = open_run(recipe or record["recipe"], work, device=record["device"], threads=record["threads"])
    if run.recipe.stage_digest(stage) != record["config_digest"]:
        raise UserError(
            "E_RUN_CHANGED",
            f"{path}: recipe {run.name} says something else by now: name the one it was made by (--recipe)",
        )
    for kind in ("teacher", "prompts"):
        if kind in record["inputs"]:
            if require_recorded(run_dir / kind, WEIGHTS) != record["inputs"][kind]:
                raise UserError("E_RUN_CHANGED", f"{path}: made from another {kind} than lies in {run_dir / kind}")
            shutil.copytree(run_dir / kind, run.role(kind), ignore=shutil.ignore_patterns("bundle"))
    foreign = teacher_weights(run.recipe, run.recipe_file) if stage == "teacher" else None
    if foreign and sha256_of(foreign) != record["inputs"].get("weights"):
        raise UserError("E_RUN_CHANGED", f"{path}: taken from another weights file than {foreign} is now: put it back")
    again = _train(stage, run)
    then, now = (str(row["outputs"].get(WEIGHTS)) for row in (record, again))
    same = then == now
    note = "to the byte" if same else "; ".join(_differs(record, again)) or "same code, packages and machine"
    return [
        Found("weights", then[:12], now[:12], True if same else None, note, decides=False),
        *_scores(record, again, run),
    ]


def _train(stage: str, run: Run) -> Json:
    from pipeline import stages

    done: Json = getattr(stages, {"undistilled": "train_undistilled"}.get(stage, f"train_{stage}"))(run)
    return done


def _differs(before: Json, now: Json) -> list[str]:
    """What may make other bytes: the code, how it was called, the packages, the machine."""
    told = [
        f"{key} {before.get(key)} then, {now.get(key)} now" for key in _OF_A_CALL if before.get(key) != now.get(key)
    ]
    for key in ("versions", "machine"):
        names = sorted(before[key].keys() | now[key].keys())
        told += [
            f"{name} {before[key].get(name)} then, {now[key].get(name)} now"
            for name in names
            if before[key].get(name) != now[key].get(name)
        ]
    return told


def _scores(before: Json, now: Json, run: Run) -> list[Found]:
    """The selected epoch's test scores; of a classifier within what that many images can tell."""
    from deploy.statistics import top1_interval
    from pipeline.evaluation import evaluate_path

    found = []
    for key, was in before["metrics"].items():
        value = now["metrics"].get(key)
        if not key.endswith("_selected") or was is None or value is None:
            continue
        if key == "test_top1_selected":
            folder, arch = run.role(now["role"]), arch_of(run.recipe, now["role"])
            num = evaluate_path(folder, arch=arch, data=None, recipe=None)["n"]
            scores = [Estimate(score, *top1_interval(round(score / 100 * num), num)) for score in (was, value)]
            found.append(_top1("test top-1 (%)", scores[0], scores[1]))
        else:
            found.append(_without_interval(key, was, value))
    return found


def _without_interval(name: str, before: float, now: float) -> Found:
    return Found(name, _told(before), _told(now), True if before == now else None, "no interval is known")


def _told(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
