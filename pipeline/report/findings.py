"""A run's records, and what they show: how accurate, small and fast the distilled student is, and what is missing."""

from __future__ import annotations

from typing import NamedTuple

from afpkd.names import in_words
from pipeline.report.candidates import BROKEN, Estimate, accuracy_of_profile, latency_of
from pipeline.report.conditions import conditions_of, unlike
from pipeline.report.records import Records, metric_of_record, score_of
from pipeline.report.wording import ROLES, VERDICTS, milliseconds, percent, si, signed, times


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


def headline(run: Records, place: tuple[str, str] | None = None) -> Headline:
    """Compare the distilled student with its undistilled twin and with the teacher.

    place: the (device, precision) to speak of; without one, where its speed-up can best be trusted.
    """
    if "student" not in run.records:
        return Headline("Nothing is distilled yet.", [])
    speed = _speedup(run, *place) if place else next(iter(speedups(run)), None)
    accuracy = _accuracy_tile(run, place or ((speed.device, speed.precision) if speed else None))
    sizes = _size_tiles(run)
    sentence = f"The distilled student ({run.records['student']['arch']}) reaches {accuracy.value} {_metric(run)}"
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
    ratio: Estimate
    """Its interval reaches from the worst to the best that the ends of both intervals allow: wider than 95 %."""
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
        Gap(f"{words}: not trained", run.command("distill")) for role, words in ROLES.items() if role not in run.records
    ]
    failed = dict.fromkeys((row["device"], row["error"]) for row in run.failures)
    gaps += [Gap(f"failed: {error}", run.command("profile", device=device)) for device, error in failed]
    left_out = dict.fromkeys((p["device"], told) for p in run.profiles for told in p.get("left_out", ()))
    gaps += [Gap(told, run.command("profile", device=device)) for device, told in left_out]
    if not run.places():
        return [*gaps, Gap("latency, throughput, memory: nothing is measured yet", run.command("profile"))]
    have = {(p["role"], p["device"], p["precision"]): p["stale"] for p in run.profiles}
    for device, precision in run.places():
        for state, value in (("not measured", None), ("outdated", True)):
            roles = [
                words
                for role, words in ROLES.items()
                if have.get((role, device, precision)) is value and run.exports(role, precision)
            ]
            if roles:
                what = f"{' and '.join(roles)} at {precision} on {device}: {state}"
                gaps.append(Gap(what, run.command("profile", device=device)))
    return gaps


def _accuracy_tile(run: Records, place: tuple[str, str] | None) -> Tile:
    """The student's accuracy, and how far it is from the others."""
    own = _score(run, "student", place)
    gaps = []
    for role, words in (("undistilled", "the same network undistilled"), ("teacher", "its teacher")):
        other = _score(run, role, place)
        if own is not None and other is not None:
            gaps.append(f"{signed(own - other)} points against {words}")
    return Tile(percent(own), f"{_metric(run)} of the distilled student", ", ".join(gaps))


def _metric(run: Records) -> str:
    return in_words(metric_of_record(run.records["student"]))


def _score(run: Records, role: str, place: tuple[str, str] | None) -> float | None:
    """That of the file measured at `place`; where there is none, of the weights, which fp32 equals to the image."""
    profile = run.profile(role, *place) if place else None
    if profile:
        if any(reason.startswith(BROKEN) for reason in profile["reasons"]):
            return None  # what it scored is not what was trained
        found = accuracy_of_profile(profile)
        return found and found.value
    record = run.records.get(role)
    return score_of(record) if record and (place is None or place[1] == "fp32") else None


def _size_tiles(run: Records) -> list[Tile]:
    if "teacher" not in run.records:
        return []
    tiles = []
    for key, unit in (("num_params", "parameters"), ("macs", "MACs")):
        teacher, student = _count(run, "teacher", key), _count(run, "student", key)
        if teacher and student:
            value, relation = times(teacher / student, "fewer", "more", "as many")
            tiles.append(Tile(value, f"{relation} {unit}", f"{si(student)} against {si(teacher)}"))
    return tiles


def _count(run: Records, role: str, key: str) -> int | None:
    """A size of the role's network: its record knows the parameters, only its profiles know the MACs."""
    sources = [run.records[role], *(p for p in run.profiles if p["role"] == role and not p["stale"])]
    return next((source[key] for source in sources if source.get(key) is not None), None)


def _speed_tile(speed: Speedup) -> Tile:
    value, relation = times(speed.ratio.value, "faster", "slower", "as fast")
    return Tile(value, f"{relation} on {speed.device}", speed.note, speed.verdict)


def _speed_words(speed: Speedup) -> str:
    tile = _speed_tile(speed)
    return f"{tile.value} {tile.label} ({tile.note}; {tile.verdict})"


def _speedup(run: Records, device: str, precision: str) -> Speedup | None:
    teacher, student = (run.profile(role, device, precision) for role in ("teacher", "student"))
    if teacher is None or student is None:
        return None
    slow, fast = latency_of(teacher, "p50"), latency_of(student, "p50")
    if slow is None or fast is None:
        return None
    note = f"p50 {milliseconds(fast.value)} ms against {milliseconds(slow.value)} ms, {precision}"
    verdict = max(teacher["verdict"], student["verdict"], key=list(VERDICTS).index)
    reasons = [f"{ROLES[p['role']]}: {reason}" for p in (teacher, student) for reason in p["reasons"]]
    differing = unlike(conditions_of(student), conditions_of(teacher))
    if differing:
        verdict, reasons = "INVALID", [f"not measured by the same rules: {differing}", *reasons]
    return Speedup(device, precision, ratio_of(slow, fast), note, verdict, reasons)


def ratio_of(above: Estimate, below: Estimate) -> Estimate:
    """Divide two estimates: the interval reaches as far as the ends of both allow, or is not known."""
    low = above.low / below.high if above.low is not None and below.high else None
    high = above.high / below.low if above.high is not None and below.low else None
    return Estimate(above.value / below.value, low, high)
