"""The front and the choice: against a plain reading of their definitions, and on cases worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afpkd.record import Json
from pipeline.report.advice import advise, devices_table
from pipeline.report.candidates import Candidate, Estimate
from pipeline.report.macs_ranks import macs_table, misled
from pipeline.report.tradeoff import Budget, Place, choose, standings
from pipeline.report.wording import si
from tests.pipeline.report.making import candidate


def places(candidates: Sequence[Candidate]) -> list[str]:
    return [str(found.place) for found in standings(candidates)]


def test_a_point_is_dominated_only_where_the_intervals_separate() -> None:
    fast, slow = candidate(80.0, 1.0), candidate(79.0, 2.0)
    assert places([fast, slow]) == ["front", "dominated"]
    assert standings([fast, slow])[1].by is fast
    vague = replace(slow, accuracy=Estimate(79.0, 78.0, 80.5))  # reaches past the other's 79.9
    assert places([fast, vague]) == ["front", "undecided"]
    near = candidate(79.0, 1.01)  # 1.0 and 1.01 ms, each ± 1 %
    assert places([fast, near]) == ["front", "undecided"]


def test_equal_numbers_leave_the_other_one_to_decide() -> None:
    assert places([candidate(80.0, 1.0), candidate(80.0, 2.0)]) == ["front", "dominated"]
    assert places([candidate(80.0, 1.0), candidate(79.0, 1.0)]) == ["front", "dominated"]
    assert places([candidate(80.0, 1.0), candidate(80.0, 1.0)]) == ["front", "front"]


def test_without_an_interval_nothing_is_proven() -> None:
    bare = candidate(80.0, 1.0, p50_ms=Estimate(1.0))
    assert places([bare, candidate(79.0, 2.0)]) == ["front", "undecided"]


def test_a_better_trade_stays_on_the_front() -> None:
    assert places([candidate(80.0, 2.0), candidate(70.0, 1.0)]) == ["front", "front"]


def test_devices_data_sets_and_invalid_rows_do_not_compete() -> None:
    best = candidate(90.0, 0.1)
    others = [candidate(50.0, 9.0, device="orin"), candidate(50.0, 9.0, data="other")]
    broken = candidate(50.0, 9.0, verdict="INVALID")
    assert places([best, *others, broken]) == ["front", "front", "front", "not judged"]
    assert places([replace(best, verdict="INVALID"), candidate(50.0, 9.0)]) == ["not judged", "front"]
    assert places([replace(best, verdict="WARN"), candidate(50.0, 9.0)]) == ["front", "dominated"]


LOCKED = {"threads": "2", "clocks": "locked"}


def test_files_measured_under_other_conditions_do_not_compete() -> None:
    assert places([candidate(90.0, 0.1, conditions=LOCKED), candidate(50.0, 9.0)]) == ["front", "front"]
    assert places([candidate(90.0, 0.1, conditions=LOCKED), candidate(50.0, 9.0, conditions=LOCKED)])[1] == "dominated"
    small, large = candidate(80.0, 3.0, macs=1), candidate(80.0, 1.0, macs=2)
    assert misled([small, large]) != []
    assert misled([small, replace(large, conditions=LOCKED)]) == []
    apart = macs_table([small, large, candidate(80.0, 2.0, macs=3, conditions=LOCKED)])
    assert [row[3] for row in apart.rows] == ["1 of 2"]
    assert [note for note in apart.notes if "over 2 files" in note] != []


def test_no_speed_up_is_told_of_times_under_other_conditions() -> None:
    (advice,) = advise([candidate(79.5, 2.0, conditions=LOCKED), candidate(82.0, 8.0, role="teacher")], Budget())
    told = "no speed-up can be told: not measured by the same rules (clocks locked against as-is)"
    assert told in advice.why[1]
    assert "faster" not in " ".join(advice.why)


def test_the_one_named_as_better_is_the_fastest_of_them() -> None:
    found = standings([candidate(80.0, 1.5), candidate(81.0, 1.0), candidate(70.0, 3.0)])
    assert found[2].by == candidate(81.0, 1.0)


_estimates = st.tuples(st.integers(0, 6), st.integers(0, 2))
_candidates = st.lists(st.tuples(_estimates, _estimates), min_size=1, max_size=12)


@given(_candidates)
@settings(max_examples=200, deadline=None)
def test_standings_are_their_definition(points: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    made = [
        replace(
            candidate(0.0, 1.0),
            accuracy=Estimate(float(right), right - wide, right + wide),
            p50_ms=Estimate(1.0 + slow, 1.0 + slow - far, 1.0 + slow + far),
        )
        for (slow, far), (right, wide) in points
    ]

    def beats(a: Candidate, b: Candidate) -> bool:
        no_worse = a.p50_ms.value <= b.p50_ms.value and a.accuracy.value >= b.accuracy.value
        return no_worse and (a.p50_ms.value, a.accuracy.value) != (b.p50_ms.value, b.accuracy.value)

    def proven(a: Candidate, b: Candidate) -> bool:
        faster = a.p50_ms.value == b.p50_ms.value or a.p50_ms.surely_below(b.p50_ms)
        return beats(a, b) and faster and (a.accuracy.value == b.accuracy.value or b.accuracy.surely_below(a.accuracy))

    for own, found in zip(made, standings(made), strict=True):
        expected = Place.front
        if any(proven(other, own) for other in made):
            expected = Place.dominated
        elif any(beats(other, own) for other in made):
            expected = Place.undecided
        assert found.place is expected


def test_without_a_budget_the_fastest_within_a_point_of_the_most_accurate() -> None:
    best, near, far = candidate(80.0, 3.0), candidate(79.0, 2.0), candidate(78.9, 1.0)
    assert choose([best, near, far], Budget()) is near


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(max_latency_ms=100.0), 2.0),
        (Budget(max_latency_ms=2.0), 1.0),  # p90 of the one with p50 2.0 is 3.03 at its upper end
        (Budget(max_latency_ms=3.02), 1.0),
        (Budget(max_latency_ms=3.04), 2.0),
        (Budget(min_accuracy=70.0), 1.0),  # accurate enough is enough
        (Budget(min_accuracy=79.5), 3.0),
        (Budget(max_latency_ms=3.04, min_accuracy=79.0), 2.0),
        (Budget(max_latency_ms=2.0, min_accuracy=79.0), None),
    ],
)
def test_budgets(budget: Budget, expected: float | None) -> None:
    choice = choose([candidate(80.0, 3.0), candidate(79.0, 2.0), candidate(76.0, 1.0)], budget)
    assert (choice.p50_ms.value if choice else None) == expected


def test_only_distilled_students_that_may_be_quoted_are_chosen() -> None:
    pool = [
        candidate(80.0, 1.0, role="teacher"),
        candidate(80.0, 1.0, role="undistilled"),
        candidate(80.0, 1.0, verdict="INVALID"),
    ]
    assert choose(pool, Budget()) is None
    warned = candidate(70.0, 5.0, verdict="WARN")
    assert choose([*pool, warned], Budget()) is warned


def test_advice_says_why_in_words() -> None:
    pool = [
        candidate(80.0, 3.0, precision="fp32"),
        candidate(79.5, 2.0, precision="int8", verdict="WARN", reasons=("foreign load: 1 CPU",)),
        candidate(70.0, 1.0, precision="fp16"),
        candidate(82.0, 8.0, role="teacher", arch="big", precision="int8"),
        candidate(79.45, 2.0, role="undistilled", precision="int8"),
    ]
    (advice,) = advise(pool, Budget())
    assert advice.title == "distilled net (afpkd), int8, on local"
    assert (
        advice.numbers == "79.50 % (79.4–79.6) top-1 · p50 2.000 (1.980–2.020) ms · p90 3.000 (2.970–3.030) ms · 4 kB"
    )
    assert advice.why == [
        "Files of students: 3 measured. A faster one (distilled net (afpkd), fp16, on local) is 10.00 points below the "
        "most accurate.",
        "Against its teacher (big): −2.50 points, 4.00× faster.",
        "+0.05 points against the same network undistilled: less than their intervals tell apart "
        "(`afpkd compare` takes two profiles image by image).",
        "WARN: foreign load: 1 CPU.",
    ]


@pytest.mark.parametrize(
    ("twin", "words"),
    [(79.6, "here the teacher did not help"), (79.4, "less than their intervals"), (70.0, "more than chance")],
)
def test_advice_compares_with_the_undistilled_twin(twin: float, words: str) -> None:
    (advice,) = advise([candidate(79.5, 2.0), candidate(twin, 2.0, role="undistilled")], Budget())
    assert words in advice.why[1]


@pytest.mark.parametrize("role", ["teacher", "undistilled"])
@pytest.mark.parametrize(
    "reason", ["outdated: the exported file has changed", "golden mismatch after", "not finite: 3"]
)
def test_advice_does_not_argue_with_what_is_outdated_or_broken(role: str, reason: str) -> None:
    other = candidate(70.0, 9.0, role=role, verdict="INVALID", reasons=("drift: …", reason))
    (advice,) = advise([candidate(79.5, 2.0), other], Budget())
    assert advice.why[1] == f"Not compared with {other.file}: {reason}."
    (advice,) = advise([candidate(79.5, 2.0), replace(other, reasons=("drift: …",))], Budget())
    assert "+9.50 points" in advice.why[1], "a disturbed clock leaves an accuracy alone"


def test_advice_names_what_is_as_fast_and_what_may_be_less_accurate() -> None:
    pool = [candidate(80.0, 2.0, right=2.0), candidate(79.5, 2.01, precision="fp16")]
    (advice,) = advise(pool, Budget(min_accuracy=79.0, max_latency_ms=5.0))
    assert "Files of students: 2 measured, 2 within the budget. It is the fastest of them." in advice.why
    assert "As fast, as far as this was measured: distilled net (afpkd), fp16." in advice.why
    assert "on another it may be 78.00 %." in advice.why[-1]


@pytest.mark.parametrize(
    ("p90", "words"),
    [
        (
            Estimate(3.0),
            "How far p90 may reach is not known (too few samples): p90 itself was held against the budget.",
        ),
        (None, "p90 is not known (too few samples): its median was held against the budget."),
        (Estimate(3.0, 2.9, 3.1), "It is the only one."),
    ],
)
def test_advice_says_what_was_held_against_the_budget(p90: Estimate | None, words: str) -> None:
    (advice,) = advise([candidate(80.0, 2.0, p90_ms=p90)], Budget(max_latency_ms=3.5))
    assert advice.why[-1].endswith(words)
    assert not advise([candidate(80.0, 2.0, p90_ms=p90)], Budget())[0].why[-1].endswith("against the budget.")


@pytest.mark.parametrize(
    ("choice", "other"),
    [
        ({}, {"device": "orin1"}),
        ({}, {"conditions": LOCKED}),
        ({"p50_ms": Estimate(2.0)}, {}),
        ({}, {"p50_ms": Estimate(2.01)}),
    ],
)
def test_nothing_is_as_fast_by_other_rules_or_without_an_interval(choice: Json, other: Json) -> None:
    pool = [candidate(80.0, 2.0, **choice), candidate(79.9, 2.01, **{"precision": "int8", **other})]
    (advice,) = advise(pool, Budget())
    assert advice.choice is pool[0]
    assert "As fast" not in " ".join(advice.why)


def test_advice_says_where_the_fastest_was_measured_by_other_rules() -> None:
    pool = [candidate(80.2, 1.5, conditions=LOCKED), candidate(80.0, 2.0), candidate(80.0, 9.0, device="orin1")]
    (advice,) = advise(pool, Budget())
    assert advice.why == [
        "Files of students: 3 measured. It is the fastest of them, as each was measured.",
        "On local, but not measured by the same rules: distilled net (afpkd), fp32 (clocks as-is against locked).",
    ]
    (advice,) = advise([pool[0], pool[2]], Budget())
    assert advice.why == ["Files of students: 2 measured. It is the fastest of them."], "a device is named anyway"


def test_advice_when_nothing_fits_names_the_nearest() -> None:
    pool = [candidate(80.0, 3.0), candidate(70.0, 1.0), candidate(95.0, 4.0, role="teacher", arch="big")]
    (advice,) = advise(pool, Budget(min_accuracy=90.0))
    assert advice.choice is None
    words = " ".join(advice.why)
    assert "The most accurate is distilled net (afpkd), fp32, on local: 80.00 %" in words
    assert "The fastest is distilled net (afpkd), fp32, on local: 70.00 %" in words
    assert "The teacher would do (teacher big, fp32, on local): 95.00 %" in words
    (advice,) = advise([candidate(80.0, 3.0, verdict="INVALID")], Budget())
    assert "Each of its 1 measured files is INVALID" in advice.why[0]
    (advice,) = advise([candidate(95.0, 4.0, role="teacher")], Budget())
    assert advice.why == ["No distilled student is measured yet."]


def test_each_data_set_and_each_device_has_its_choice() -> None:
    pool = [candidate(80.0, 3.0), candidate(60.0, 1.0, device="orin"), candidate(99.0, 1.0, data="other")]
    assert [(found.data, found.choice) for found in advise(pool, Budget())] == [("shapes", pool[0]), ("other", pool[2])]
    table = devices_table(pool, Budget(min_accuracy=70.0))
    assert [(row[0], row[1], row[2]) for row in table.rows] == [
        ("local", "shapes", "distilled net (afpkd), fp32"),
        ("orin", "shapes", "none fits"),
        ("local", "other", "distilled net (afpkd), fp32"),
    ]
    assert table.columns[3] == "Top-1"
    assert devices_table([replace(one, metric="ap") for one in pool], Budget()).columns[3] == "AP"
    assert devices_table(pool[:1], Budget()).rows == []


@pytest.mark.parametrize(
    ("count", "told"), [(999.4, "999"), (999.6, "1 k"), (999_700, "1 M"), (999_400, "999 k"), (12.5e6, "12.5 M")]
)
def test_a_count_that_rounds_up_takes_the_next_prefix(count: float, told: str) -> None:
    assert si(count) == told
