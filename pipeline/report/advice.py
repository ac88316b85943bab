"""Which student, at which precision, on which device, and why: the report's first words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from afpkd.names import in_words
from pipeline.report.candidates import Candidate, Estimate
from pipeline.report.conditions import unlike
from pipeline.report.tables import Table
from pipeline.report.tradeoff import NEAR_POINTS, Budget, choose, upper_end
from pipeline.report.wording import NONE, metric_words, milliseconds, percent, si, signed, span, times

_NAMED = 3  # of others, before the rest is a count


class Advice(NamedTuple):
    """For the recipes of one data set: the file to take, or that there is none, in words."""

    data: str
    choice: Candidate | None
    title: str
    asked: str
    numbers: str
    why: list[str]


def advise(candidates: Sequence[Candidate], budget: Budget) -> list[Advice]:
    """Advise for each data set, in the order of the candidates; accuracies on different ones do not compare."""
    return [
        _advice(data, [c for c in candidates if c.data == data], budget)
        for data in dict.fromkeys(c.data for c in candidates)
    ]


def devices_table(candidates: Sequence[Candidate], budget: Budget) -> Table:
    """The choice on each device, where there are several."""
    places = dict.fromkeys((c.data, c.device) for c in candidates)
    rows = []
    for data, device in places:
        choice = choose([c for c in candidates if (c.data, c.device) == (data, device)], budget)
        row = [device, data]
        row += [choice.file, *_figures(choice), choice.verdict] if choice else ["none fits", NONE, NONE, NONE, NONE]
        rows.append(row)
    metric = metric_words({c.metric for c in candidates} or {"top1"})
    columns = ["Device", "Data set", "Take", metric[0].upper() + metric[1:], "p50 (ms)", "p90 (ms)", "Verdict"]
    shown = rows if len(rows) > 1 else []
    return Table("On each device", columns, shown, frozenset({3, 4, 5}), [asked_words(budget)])


def asked_words(budget: Budget) -> str:
    """Say what the choice keeps to."""
    if budget.is_open:
        return (
            f"No budget was given: the fastest student within {NEAR_POINTS:g} point of the most accurate one. Others: "
            "afpkd report --max-latency-ms … --min-accuracy …"
        )
    parts = []
    if budget.max_latency_ms is not None:
        parts.append(f"p90 of {budget.max_latency_ms:g} ms at most")
    if budget.min_accuracy is not None:
        parts.append(f"accuracy of {budget.min_accuracy:g} % at least")
    rest = "" if budget.min_accuracy is not None else f", then within {NEAR_POINTS:g} point of the most accurate"
    return f"Asked for: {' and '.join(parts)}{rest}; of these the fastest."


def _advice(data: str, candidates: Sequence[Candidate], budget: Budget) -> Advice:
    choice = choose(candidates, budget)
    if choice is None:
        return Advice(
            data, None, "No student can be recommended", asked_words(budget), "", _why_none(candidates, budget)
        )
    title = choice.file_there
    return Advice(data, choice, title, asked_words(budget), _numbers(choice), _why(choice, candidates, budget))


def _numbers(choice: Candidate) -> str:
    accuracy, p50, p90 = _figures(choice)
    words = [
        f"{accuracy} {in_words(choice.metric)}",
        f"p50 {p50} ms",
        *([f"p90 {p90} ms"] if choice.p90_ms else []),
        si(choice.size_bytes, "B"),
    ]
    return " · ".join(words)


def _figures(candidate: Candidate) -> list[str]:
    """Accuracy, p50, p90, each with its interval."""
    slow = candidate.p90_ms
    return [
        f"{percent(candidate.accuracy.value)}{_bracketed(candidate.accuracy, 1)}",
        f"{milliseconds(candidate.p50_ms.value)}{_bracketed(candidate.p50_ms, 3)}",
        f"{milliseconds(slow.value)}{_bracketed(slow, 3)}" if slow else NONE,
    ]


def _bracketed(estimate: Estimate, digits: int) -> str:
    words = span(estimate.low, estimate.high, digits)
    return f" ({words})" if words else ""


def _why(choice: Candidate, candidates: Sequence[Candidate], budget: Budget) -> list[str]:
    students = [c for c in candidates if c.role == "student"]
    usable = [c for c in students if c.is_usable]
    fitting = [c for c in usable if budget.admits(c)]
    counts = [f"{len(students)} measured", *([f"{len(usable)} usable"] if len(usable) < len(students) else [])]
    counts += [] if budget.is_open else [f"{len(fitting)} within the budget"]
    return [
        f"Files of students: {', '.join(counts)}. {_rank_words(choice, fitting, budget)}",
        *_against_others(choice, candidates),
        *_equals(choice, fitting),
        *_unlike_words(choice, fitting),
        *_caveats(choice, budget),
    ]


def _rank_words(choice: Candidate, fitting: Sequence[Candidate], budget: Budget) -> str:
    if len(fitting) == 1:
        return "It is the only one."
    best = max(fitting, key=lambda c: c.accuracy.value)
    fastest = min(fitting, key=lambda c: c.p50_ms.value)
    if choice.p50_ms.value > fastest.p50_ms.value:
        lost = best.accuracy.value - fastest.accuracy.value
        return f"A faster one ({fastest.file_there}) is {lost:.2f} points below the most accurate."
    gap = best.accuracy.value - choice.accuracy.value
    fastest_words = "It is the fastest of them" + (", as each was measured" if _of_other_rules(choice, fitting) else "")
    if budget.min_accuracy is not None or not gap:
        return f"{fastest_words}."
    return f"{fastest_words}, {gap:.2f} points below the most accurate ({best.file_there})."


def _against_others(choice: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    """Its teacher and its undistilled twin, same recipe, precision and device."""
    place = (choice.recipe, choice.device, choice.precision)
    beside = {c.role: c for c in candidates if (c.recipe, c.device, c.precision) == place}
    told = {"teacher": _teacher_words, "undistilled": _distillation_words}
    return [
        f"Not compared with {other.file}: {other.why_not_scored}." if other.why_not_scored else words(choice, other)
        for role, words in told.items()
        if (other := beside.get(role))
    ]


def _teacher_words(choice: Candidate, teacher: Candidate) -> str:
    gap = signed(choice.accuracy.value - teacher.accuracy.value)
    return f"Against its teacher ({teacher.arch}): {gap} points, {_speed_words(choice, teacher)}."


def _speed_words(choice: Candidate, teacher: Candidate) -> str:
    differing = unlike(choice.conditions, teacher.conditions)
    if differing:
        return f"and no speed-up can be told: not measured by the same rules ({differing})"
    ratio, relation = times(teacher.p50_ms.value / choice.p50_ms.value, "faster", "slower", "as fast")
    return f"{ratio} {relation}" + ("" if teacher.is_usable else ", but the teacher's time is INVALID")


def _distillation_words(choice: Candidate, twin: Candidate) -> str:
    own, other = choice.accuracy, twin.accuracy
    gap = f"{signed(own.value - other.value)} points against the same network undistilled"
    if own.value <= other.value:
        return f"{gap}: here the teacher did not help."
    if own.low is None or other.low is None:
        return f"{gap}: no interval is known, so not how much of it is chance."
    if own.meets(other):
        return f"{gap}: less than their intervals tell apart (`afpkd compare` takes two profiles image by image)."
    return f"{gap}: more than chance in the test images."


def _equals(choice: Candidate, fitting: Sequence[Candidate]) -> list[str]:
    """Those that may be as fast and that nothing tells apart: by the same rules, both with an interval."""
    beside = [c for c in fitting if c is not choice and c.place == choice.place]
    known = [c for c in beside if choice.p50_ms.high is not None and c.p50_ms.high is not None]
    equals = [c.file for c in known if c.p50_ms.meets(choice.p50_ms)]
    return [f"As fast, as far as this was measured: {_listed(equals)}."] if equals else []


def _unlike_words(choice: Candidate, fitting: Sequence[Candidate]) -> list[str]:
    others = [f"{c.file} ({unlike(c.conditions, choice.conditions)})" for c in _of_other_rules(choice, fitting)]
    return [f"On {choice.device}, but not measured by the same rules: {_listed(others)}."] if others else []


def _of_other_rules(choice: Candidate, fitting: Sequence[Candidate]) -> list[Candidate]:
    """Those on its device whose latencies do not compare with its own."""
    return [c for c in fitting if c.device == choice.device and c.place != choice.place]


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{'; '.join(names[:_NAMED])}{rest}"


def _caveats(choice: Candidate, budget: Budget) -> list[str]:
    words = [f"{choice.verdict}: {reason}." for reason in choice.reasons]
    low = choice.accuracy.low
    if budget.min_accuracy is not None and low is not None and low < budget.min_accuracy:
        words.append(
            f"Its accuracy is {percent(choice.accuracy.value)} on this test set; on another it may be {percent(low)}."
        )
    if budget.max_latency_ms is not None and choice.p90_ms is None:
        words.append("p90 is not known (too few samples): its median was held against the budget.")
    elif budget.max_latency_ms is not None and choice.p90_ms and choice.p90_ms.high is None:
        words.append("How far p90 may reach is not known (too few samples): p90 itself was held against the budget.")
    if choice.p50_ms.high is None:
        words.append("Its latency has no interval: profile it again before small differences are believed.")
    return words


def _why_none(candidates: Sequence[Candidate], budget: Budget) -> list[str]:
    students = [c for c in candidates if c.role == "student"]
    usable = [c for c in students if c.is_usable]
    if not students:
        return ["No distilled student is measured yet."]
    if not usable:
        return [
            f"Each of its {len(students)} measured files is INVALID (the table says why): measure again on a machine "
            "that does nothing else."
        ]
    accurate, fast = (
        max(usable, key=lambda c: c.accuracy.value),
        min(usable, key=lambda c: upper_end(c.p90_ms or c.p50_ms)),
    )
    words = [f"The most accurate is {accurate.file_there}: {_numbers(accurate)}."]
    if fast is not accurate:
        words.append(f"The fastest is {fast.file_there}: {_numbers(fast)}.")
    teachers = [c for c in candidates if c.role == "teacher" and c.is_usable and budget.admits(c)]
    if teachers:
        words.append(f"The teacher would do ({teachers[0].file_there}): {_numbers(teachers[0])}.")
    return words
