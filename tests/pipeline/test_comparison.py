"""The page that compares recipes is of those that were asked for."""

from pathlib import Path

import pytest

from afpkd.record import write_record
from pipeline.plan import COMPARISON, other_comparison, read_recipes


@pytest.mark.parametrize(
    ("told", "outdated"), [(["a", "b"], False), (["b", "a"], True), (["a", "c"], True), (["a"], True)]
)
def test_a_page_of_other_recipes_makes_way(told: list[str], outdated: bool, tmp_path: Path) -> None:
    """`afpkd report --recipes` by hand, or a run of which one recipe failed, writes in the same place."""
    for name in "ab":
        (tmp_path / f"{name}.toml").write_text('extends = "default"\n')
    found = read_recipes([str(tmp_path / f"{name}.toml") for name in "ab"])
    assert other_comparison(tmp_path, found) == []
    page = tmp_path / COMPARISON / "report.html"
    write_record(page.with_suffix(".json"), {"recipes": told})
    assert other_comparison(tmp_path, found) == [], "there is no page"
    page.touch()
    assert other_comparison(tmp_path, found) == ([page] if outdated else [])
    assert other_comparison(tmp_path, found[:1]) == [], "nothing is compared"
