"""The page in a real browser: nothing complains, nothing is asked for outside, plots are drawn, tables sort."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from afpkd.record import write_record
from pipeline.report.writing import write_report
from tests.pipeline.conftest import profile_record
from tests.pipeline.report.browser import PROGRAMS, Tab, find_chromium, opened
from tests.pipeline.report.making import put_losses, whole_run, with_intervals

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=f"no Chromium here (none of {', '.join(PROGRAMS)})")

_ROWS = "[...document.querySelectorAll('#models tbody')].map((group) => group.rows[0].cells[{column}].innerText)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes on two devices, one row INVALID."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [whole_run(folder / name, devices={"local": 1.0, "orin": 3.0}, seed=i) for i, name in enumerate("ab")]
    record = profile_record("teacher") | {"verdict": "INVALID", "reasons": ["drift: latency moved"]}
    write_record(folder / "a" / "profiles" / "local" / "teacher-fp32.json", with_intervals(record))
    return write_report([run.records() for run in runs], folder / "comparison")["html"]


@pytest.fixture(scope="module")
def tab(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with opened(page, tmp_path_factory.mktemp("chromium")) as found:
        found.look()
        yield found


def numbers(cells: list[str]) -> list[float]:
    return [float(cell.split()[0].replace(",", "")) for cell in cells if cell != "-"]


def test_plots_are_drawn(tab: Tab) -> None:
    drawn = "[...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll('.main-svg path').length)"
    counts = tab.evaluate(drawn)
    assert len(counts) == 3  # the trade-off, and bars for each device
    assert min(counts) > 20
    points = "document.querySelectorAll('#tradeoff .scatterlayer .points path').length"
    assert tab.evaluate(points) >= 24  # candidates; and the ring


def test_another_way_to_colour_redraws(tab: Tab) -> None:
    choose = """(() => {
      const select = document.querySelector("select[data-plot]");
      select.value = "device"; select.dispatchEvent(new Event("change"));
      return [...document.querySelectorAll("#tradeoff .legendtext")].map((text) => text.textContent);
    })()"""
    assert {"local", "orin"} <= set(tab.evaluate(choose))


def test_a_click_sorts_the_table(tab: Tab) -> None:
    headings = tab.evaluate("[...document.querySelectorAll('#models thead th')].map((cell) => cell.innerText)")
    column = next(number for number, words in enumerate(headings) if "p50" in words)
    button = f"#models thead th:nth-child({column + 1}) button"
    unsorted = numbers(tab.evaluate(_ROWS.format(column=column)))
    tab.click(button)
    upwards = numbers(tab.evaluate(_ROWS.format(column=column)))
    tab.click(button)
    downwards = numbers(tab.evaluate(_ROWS.format(column=column)))
    assert len(upwards) == 24
    assert upwards == sorted(unsorted) != unsorted
    assert downwards == sorted(unsorted, reverse=True)
    # why a row is INVALID stays below it
    rows = tab.evaluate("[...document.querySelectorAll('#models .why')].map((row) => row.parentNode.innerText)")
    assert any("teacher fp32" in row and "INVALID: drift" in row for row in rows)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["10 k", "9.5 M", "200", "-", "1.1 G"], ["200", "10 k", "9.5 M", "1.1 G", "-"]),
        (["312 MB", "1.2 GB", "77.8 kB", "512 B"], ["512 B", "77.8 kB", "312 MB", "1.2 GB"]),
        (["+0.40", "−0.80", "-0.10", "+0.00"], ["−0.80", "-0.10", "+0.00", "+0.40"]),
        (["1,234.6", "99", "1.00×"], ["1.00×", "99", "1,234.6"]),
        (["b", "", "a", "3"], ["3", "a", "b", ""]),
    ],
)
def test_numbers_sort_by_size_and_what_is_missing_last(tab: Tab, cells: list[str], expected: list[str]) -> None:
    rows = "".join(f"<tbody><tr><td>{cell}</td></tr></tbody>" for cell in cells)
    sort = f"""(() => {{
      const table = document.createElement("table");
      table.innerHTML = "<thead><tr><th>x</th></tr></thead>{rows}";
      sortBy(table, table.tHead.rows[0].cells[0]);
      return [...table.tBodies].map((group) => group.innerText.trim());
    }})()"""
    assert tab.evaluate(sort) == expected


def test_words_filter_the_rows(tab: Tab) -> None:
    shown = """((words) => {
      const input = document.querySelector("input[data-filter]");
      input.value = words; input.dispatchEvent(new Event("input"));
      return [...document.querySelectorAll("#models tbody")].filter((group) => group.offsetHeight).length;
    })"""
    assert tab.evaluate(f"{shown}('distilled orin int8')") == 4  # "undistilled" has the word too; two recipes
    assert tab.evaluate(f"{shown}('')") == 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """One recipe with its training curves."""
    folder = tmp_path_factory.mktemp("one")
    made = whole_run(folder / "a", devices={"local": 1.0})
    put_losses(made)
    made.report()
    with opened(folder / "a" / "report.html", tmp_path_factory.mktemp("chromium-one")) as found:
        yield found


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1280, 2)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_training_curves_are_drawn_side_by_side_where_there_is_room(
    trained: Tab, width: int, columns: int, scheme: str
) -> None:
    trained.look(width=width, scheme=scheme)
    trained.evaluate("new Promise((done) => setTimeout(done, 0))")  # plotly's own resizing comes first
    counted = "map((plot) => plot.querySelectorAll('.lines path').length)"
    lines = trained.evaluate(f"[...document.querySelectorAll('#training, .curves .plot')].{counted}")
    assert lines == [3, 2, 1]  # held-out of all three; task of two; the odd term of one
    tops = trained.evaluate("[...document.querySelectorAll('.curves h3')].map((h) => h.getBoundingClientRect().top)")
    assert len(set(tops)) == 2 // columns
    assert trained.evaluate("document.documentElement.scrollWidth") == width
    legend = trained.evaluate("[...document.querySelectorAll('.curves .legendtext')].map((t) => t.textContent)")
    assert legend == ["distilled", "undistilled", "distilled"]
    assert trained.complaints() == []


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_screen(tab: Tab, width: int, scheme: str) -> None:
    tab.look(width=width, scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = (
        [int(number) for number in re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{what}"))[:3]]
        for what in ("color", "backgroundColor")
    )
    assert (sum(ink) > sum(paper)) is (scheme == "dark")
    axis = tab.evaluate("getComputedStyle(document.querySelector('#tradeoff .xtick text')).fill")
    assert [int(number) for number in re.findall(r"\d+", axis)[:3]] == ink
    assert tab.picture().startswith(b"\x89PNG")
    tab.look()


def test_it_prints(tab: Tab) -> None:
    pdf = tab.pdf()
    assert pdf.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 40
    tab.look()


def test_nothing_complained_and_nothing_was_asked_for_outside(tab: Tab, page: Path) -> None:
    """Last: it speaks of all that the tests above did."""
    assert tab.complaints() == []
    requests = tab.requests()
    assert requests[0] == page.resolve().as_uri()
    assert [url for url in requests[1:] if not url.startswith("data:")] == []
    told = tab.evaluate("fetch('https://example.org/').then(() => 'let out', () => 'held')")
    assert told == "held"  # by its Content-Security-Policy
    assert any("Content Security Policy" in words for words in tab.complaints())  # complaints are heard
