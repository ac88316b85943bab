"""The report on phase 1: its figures are the record's, its pictures travel inside the page."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

import pytest

from afpkd.record import Json, write_record

if TYPE_CHECKING:
    from tests.pipeline.conftest import HandMadeRun

TITLE = "What the prompts look at"
METRICS: Json = {
    "teacher_heldout_top1": 89.125,
    "prompted_heldout_top1": 88.25,
    "median_mask_spread": 0.375,
    "accepted": True,
    "own": {"kl": 0.03125, "agreement": 97.5},
    "banded": {"kl": 0.0625, "agreement": 95.0},
    "shuffled": {"kl": 1.5, "agreement": 41.25},
    "constant": {"kl": 1.25, "agreement": 52.0},
    "overlap": 0.4375,
    "omega_std": [0.125, 0.0625],
    "masks": [
        {"level": 0, "band": "low", "mean": 0.75, "spread": 0.25},
        {"level": 1, "band": "low", "mean": 0.5, "spread": 0.375},
        *({"level": 1, "band": f"{name}12", "mean": 0.25, "spread": 1.5} for name in ("row", "column", "diagonal")),
    ],
}
PNG = b"\x89PNG\r\n\x1a\n of a level"


def put_prompts(made: HandMadeRun, *, pictures: tuple[int, ...] = (), **changes: object) -> None:
    write_record(made.folder / "prompts" / "record.json", {"metrics": METRICS | changes})
    for level in pictures:
        (made.folder / "prompts" / f"level{level}.png").write_bytes(PNG + str(level).encode())


def tables(markdown: str) -> dict[str, list[list[str]]]:
    """Heading -> rows of cells, of the section's tables."""
    found = re.findall(r"^### (.+)\n\n((?:\|.*\n)+)", markdown, flags=re.MULTILINE)
    return {title: [line.strip("| ").split(" | ") for line in block.splitlines()[2:]] for title, block in found}


def test_the_figures_are_the_records(made: HandMadeRun) -> None:
    put_prompts(made)
    report = made.report()
    assert tables(report.md) == {
        "Do the masks choose?": [
            ["the prompts' own", "0.0312", "97.50 %"],
            ["each band's mean at all its pixels", "0.0625", "95.00 %"],
            ["the same, shuffled over bands and pixels", "1.5000", "41.25 %"],
            ["the level's mean everywhere", "1.2500", "52.00 %"],
        ],
        "Phase 1": [
            ["Held-out top-1 of the teacher", "89.12 %"],
            ["Held-out top-1 of the teacher with its prompts", "88.25 %"],
            ["Overlap of the tokens' masks (mean pairwise soft Jaccard)", "0.438"],
            ["Spread of the masks (median)", "0.375"],
            ["Standard deviation of the channel weights omega, a level", "0.125, 0.062"],
        ],
        "Masks: mean (spread)": [
            ["low", "0.75 (0.25)", "0.50 (0.38)"],
            ["row 12", "-", "0.25 (1.50)"],
            ["column 12", "-", "0.25 (1.50)"],
            ["diagonal 12", "-", "0.25 (1.50)"],
        ],
    }
    seen = report.page().text
    for row in (row for rows in tables(report.md).values() for row in rows):
        assert " ".join(row) in seen


@pytest.mark.parametrize(
    ("accepted", "words"),
    [
        (True, "The masks choose: the teacher says the same with its prompts' masks and no longer with the same masks"),
        (
            False,
            "random or constant masks with an equal share of coefficients: the gain, if any, does not come from",
        ),
    ],
)
def test_one_sentence_says_whether_the_masks_choose(made: HandMadeRun, accepted: bool, words: str) -> None:
    put_prompts(made, accepted=accepted)
    report = made.report()
    assert words in report.md
    assert words in report.page().text
    assert ("The masks do not choose" in report.md) is not accepted


def test_pictures_travel_in_the_page_shallow_to_deep(made: HandMadeRun) -> None:
    put_prompts(made, pictures=(10, 0, 2))
    report = made.report()
    sources = [attributes["src"] or "" for tag, attributes in report.page().tags if tag == "img"]
    inlined = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert inlined == [PNG + level for level in (b"0", b"2", b"10")]
    links = re.findall(r"!\[Level .*\]\((.+)\)", report.md)
    assert links == [f"prompts/level{level}.png" for level in (0, 2, 10)]
    assert all((made.folder / link).exists() for link in links)
    assert "not recorded" not in report.md


@pytest.mark.parametrize("method", [None, "none"])
def test_of_a_foreign_teacher_it_is_said_that_it_may_know_the_held_out_images(
    made: HandMadeRun, method: str | None
) -> None:
    put_prompts(made)
    made.put_record("teacher", method=method)
    report = made.report()
    for page in (report.md, report.page().text):
        assert ("it may have been trained on the held-out images" in page) is (method is None)


def test_a_method_without_prompts_has_no_section(made: HandMadeRun) -> None:
    put_prompts(made, pictures=(0,))
    assert f"## {TITLE}\n" in made.report().md
    made.put_record("student", method="kd", inputs={})  # the prompts of an earlier method still lie there
    report = made.report()
    assert TITLE not in report.md
    assert TITLE not in report.page().text
    assert not any(tag == "img" for tag, _ in report.page().tags)


@pytest.mark.parametrize("metrics", [{}, {"prompted_heldout_top1": 88.25, "masks": {"mean": [0.5]}}])
def test_a_record_of_an_earlier_version_is_no_error(made: HandMadeRun, metrics: Json) -> None:
    write_record(made.folder / "prompts" / "record.json", {"metrics": metrics})
    report = made.report()
    for words in (
        "Whether the masks choose is not recorded.",
        "Pictures of the masks: not recorded.",
        "Mean and spread of each mask: not recorded.",
    ):
        assert words in report.md
        assert words in report.page().text
    rows = {cell for table in tables(report.md).values() for row in table for cell in row[1:]}
    assert rows == {"not recorded", *(["88.25 %"] if metrics else [])}
