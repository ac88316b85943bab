"""A run's records, and what they show: how accurate, small and fast the distilled student is, and what is missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from afpkd.record import Json, UserError, read_record
from pipeline.failures import failures

ROLES = {"teacher": "teacher", "student": "distilled", "undistilled": "undistilled"}  # on disk -> in words
VERDICTS = {  # from good to bad
    "VALID": "may be quoted",
    "WARN": "may be quoted with its reasons beside it",
    "INVALID": "must not be used",
}
NONE = "-"
_MANIFEST = Path("bundle", "manifest.json")
_SAME_RULES = ("scenario", "batch", "threads", "preset")  # of a row: only rows that agree in these compare


@dataclass(frozen=True, slots=True)
class Records:
    """All records of one recipe. Keys of `records`, `manifests` and `curves` are roles."""

    name: str
    records: dict[str, Json]
    manifests: dict[str, Json]
    prompts: Json | None
    pictures: dict[str, bytes]
    """What the prompts look at: PNG by its path in the run, shallow to deep."""
    curves: dict[str, list[Json]]
    """Finished epochs in order."""
    profiles: list[Json]
    """In the order of role, device, precision. An outdated one is INVALID and carries `stale`: True."""
    failures: Sequence[Json] = ()
    """Measurements that failed: `device` and `error`."""

    def profile(self, role: str, device: str, precision: str) -> Json | None:
        """Give the role's profile of the file as it is exported now, or None."""
        wanted = (role, device, precision)
        found = (p for p in self.profiles if (p["role"], p["device"], p["precision"]) == wanted and not p["stale"])
        return next(found, None)

    def places(self) -> list[tuple[str, str]]:
        """List each (device, precision) where something was measured."""
        return sorted({(p["device"], p["precision"]) for p in self.profiles})


def read_records(run_dir: Path, name: str) -> Records:
    """Read what there is under `runs/<recipe>`; UserError where a record is broken, or where there is none at all."""
    records = {role: read_record(path) for role in ROLES if (path := run_dir / role / "record.json").exists()}
    if not records:
        raise UserError(f"{run_dir}: nothing to report yet: run `{command(name, 'distill')}`")
    tuned = run_dir / "prompts" / "record.json"
    # those of an earlier method may still lie there
    prompts = read_record(tuned) if tuned.exists() and "prompts" in _inputs(records.get("student")) else None
    curves = {role: _epochs(path) for role in ROLES if (path := run_dir / role / "metrics.jsonl").exists()}
    manifests = {role: read_record(path) for role in ROLES if (path := run_dir / role / _MANIFEST).exists()}
    profiles = [_profile(path, manifests) for path in run_dir.glob("profiles/*/[!.]*.json")]
    return Records(
        name=name,
        records=records,
        manifests=manifests,
        prompts=prompts,
        pictures=_pictures(run_dir) if prompts else {},
        curves={role: epochs for role, epochs in curves.items() if epochs},
        profiles=sorted(profiles, key=lambda p: (list(ROLES).index(p["role"]), p["device"], p["precision"])),
        failures=failures(run_dir),
    )


def _pictures(run_dir: Path) -> dict[str, bytes]:
    found = sorted((run_dir / "prompts").glob("level*.png"), key=lambda path: (len(path.name), path.name))
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in found}


def _inputs(record: Json | None) -> Json:
    found: Json = (record or {}).get("inputs", {})
    return found


def command(name: str, *targets: str, device: str = "local") -> str:
    """Write the make command for a recipe; the device only where it is not make's default."""
    return shlex.join(["make", *targets, f"RECIPE={name}", *([f"DEVICE={device}"] if device != "local" else [])])


class Tile(NamedTuple):
    """One number to be seen at a glance: `value`, what it is, and what it rests on."""

    value: str
    label: str
    note: str
    verdict: str | None = None


class Headline(NamedTuple):
    """The result in two sentences, and the same as tiles."""

    sentence: str
    tiles: list[Tile]


def headline(run: Records) -> Headline:
    """Compare the distilled student with its undistilled twin and with the teacher."""
    if "student" not in run.records:
        return Headline("Nothing is distilled yet.", [])
    speed = next(iter(speedups(run)), None)
    accuracy = _accuracy_tile(run, (speed.device, speed.precision) if speed else None)
    sizes = _size_tiles(run)
    sentence = f"The distilled student ({run.records['student']['arch']}) reaches {accuracy.value} top-1"
    sentence += f": {accuracy.note}." if accuracy.note else "."
    if sizes:
        sentence += f" Compared with the teacher ({run.records['teacher']['arch']}) it has "
        sentence += " and ".join(f"{tile.value} {tile.label}" for tile in sizes)
        sentence += f", and is {_speed_words(speed)}." if speed else "."
    return Headline(sentence, [accuracy, *sizes, *([_speed_tile(speed)] if speed else [])])


class Speedup(NamedTuple):
    """The student against the teacher at one place: the ratio of their median latencies, and how far to trust it."""

    device: str
    precision: str
    ratio: float
    note: str
    verdict: str
    reasons: list[str]


def speedups(run: Records) -> list[Speedup]:
    """Compare p50 of teacher and student wherever both were timed; what a reader should see first comes first."""
    found = [speedup for place in run.places() if (speedup := _speedup(run, *place))]
    order = list(VERDICTS)
    return sorted(
        found, key=lambda s: (s.verdict == "INVALID", s.precision != "fp32", order.index(s.verdict), s.device)
    )


class Gap(NamedTuple):
    """Something that is not there, and the command that makes it."""

    what: str
    command: str


def missing(run: Records) -> list[Gap]:
    """Say what is not there yet, or is there but outdated."""
    gaps = [
        Gap(f"{words}: not trained", command(run.name, "distill"))
        for role, words in ROLES.items()
        if role not in run.records
    ]
    failed = dict.fromkeys((row["device"], row["error"]) for row in run.failures)
    gaps += [Gap(f"failed: {error}", command(run.name, "profile", device=device)) for device, error in failed]
    if not run.profiles:
        return [*gaps, Gap("latency, throughput, memory: nothing is measured yet", command(run.name, "profile"))]
    have = {(p["role"], p["device"], p["precision"]): p["stale"] for p in run.profiles}
    for device, precision in run.places():
        for state, value in (("not measured", None), ("outdated", True)):
            roles = [words for role, words in ROLES.items() if have.get((role, device, precision)) is value]
            if roles:
                what = f"{' and '.join(roles)} at {precision} on {device}: {state}"
                gaps.append(Gap(what, command(run.name, "profile", device=device)))
    return gaps


def top1_of(record: Json) -> float | None:
    """Give the test top-1 in percent of the epoch whose weights travel on; None where it was not tested."""
    top1: float | None = record["metrics"]["test_top1_selected"]
    return top1


def percent(value: float | None) -> str:
    """Write an accuracy in percent, or `-`."""
    return NONE if value is None else f"{value:.2f} %"


def milliseconds(value: float | None) -> str:
    """Write a latency to the microsecond, or `-`."""
    return NONE if value is None else f"{value:,.3f}"


def si(value: float | None, unit: str = "") -> str:
    """Write a count with three digits and a decimal prefix (k, M, G), or `-`."""
    if value is None:
        return NONE
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def _accuracy_tile(run: Records, place: tuple[str, str] | None) -> Tile:
    """The student's top-1, and how far it is from the others."""
    own = _top1(run, "student", place)
    gaps = []
    for role, words in (("undistilled", "the same network undistilled"), ("teacher", "its teacher")):
        other = _top1(run, role, place)
        if own is not None and other is not None:
            gaps.append(f"{_signed(own - other)} points against {words}")
    return Tile(percent(own), "top-1 of the distilled student", ", ".join(gaps))


def _top1(run: Records, role: str, place: tuple[str, str] | None) -> float | None:
    """Top-1 of the file measured at `place`; where there is none, of the weights, which equals fp32 to the image."""
    profile = run.profile(role, *place) if place else None
    if profile:
        top1: float | None = profile["top1"]
        return top1
    record = run.records.get(role)
    return top1_of(record) if record and (place is None or place[1] == "fp32") else None


def _size_tiles(run: Records) -> list[Tile]:
    if "teacher" not in run.records:
        return []
    tiles = []
    for key, unit in (("num_params", "parameters"), ("macs", "MACs")):
        teacher, student = _count(run, "teacher", key), _count(run, "student", key)
        if teacher and student:
            value, relation = _times(teacher / student, "fewer", "more", "as many")
            tiles.append(Tile(value, f"{relation} {unit}", f"{si(student)} against {si(teacher)}"))
    return tiles


def _count(run: Records, role: str, key: str) -> int | None:
    """A size of the role's network: its record knows the parameters, only its profiles know the MACs."""
    sources = [run.records[role], *(p for p in run.profiles if p["role"] == role and not p["stale"])]
    return next((source[key] for source in sources if source.get(key) is not None), None)


def _speed_tile(speed: Speedup) -> Tile:
    value, relation = _times(speed.ratio, "faster", "slower", "as fast")
    return Tile(value, f"{relation} on {speed.device}", speed.note, speed.verdict)


def _speed_words(speed: Speedup) -> str:
    tile = _speed_tile(speed)
    return f"{tile.value} {tile.label} ({tile.note}; {tile.verdict})"


def _times(ratio: float, above: str, below: str, equal: str) -> tuple[str, str]:
    """Say a ratio as `2.93×` and a word for its direction."""
    if f"{ratio:.2f}" == "1.00":
        return "1.00×", equal
    return (f"{ratio:,.2f}×", above) if ratio > 1 else (f"{1 / ratio:,.2f}×", below)


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _speedup(run: Records, device: str, precision: str) -> Speedup | None:
    teacher, student = (run.profile(role, device, precision) for role in ("teacher", "student"))
    if teacher is None or student is None:
        return None
    slow, fast = teacher["latency_ms"]["p50"], student["latency_ms"]["p50"]
    if slow is None or fast is None:
        return None
    note = f"p50 {milliseconds(fast)} ms against {milliseconds(slow)} ms, {precision}"
    verdict = max(teacher["verdict"], student["verdict"], key=list(VERDICTS).index)
    reasons = [f"{ROLES[p['role']]}: {reason}" for p in (teacher, student) for reason in p["reasons"]]
    unlike = [
        f"{key} {student.get(key)} against {teacher.get(key)}"
        for key in _SAME_RULES
        if student.get(key) != teacher.get(key)
    ]
    if unlike:
        verdict, reasons = "INVALID", [f"not measured by the same rules: {', '.join(unlike)}", *reasons]
    return Speedup(device, precision, slow / fast, note, verdict, reasons)


def _profile(path: Path, manifests: Mapping[str, Json]) -> Json:
    """Read a profile; where the file it measured is no longer the exported one, say so in its verdict."""
    profile = read_record(path)
    stale = _is_stale(profile, manifests.get(profile["role"]))
    if stale:
        reason = "outdated: the exported file has changed since it was measured"
        rows = [{**row, "verdict": "INVALID", "reasons": [reason, *row["reasons"]]} for row in profile["rows"]]
        profile |= {"verdict": "INVALID", "reasons": [reason, *profile["reasons"]], "rows": rows}
    return {**profile, "stale": stale}


def _is_stale(profile: Json, manifest: Json | None) -> bool:
    """Whether a file the profile read has another hash in the bundle now. Profiles of a bundle that is gone stay."""
    now = {file["path"]: file["sha256"] for file in manifest["files"]} if manifest else {}
    return any(now.get(path, sha256) != sha256 for path, sha256 in profile["inputs"].items())


def _epochs(path: Path) -> list[Json]:
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path}: not one JSON document a line ({error}): delete it and train again") from None
