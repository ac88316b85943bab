"""The page as Markdown: every sentence and table of it, for a repository or a pull request."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.report.advice import Advice
from pipeline.report.models_table import TEXT_COLUMNS, ModelsTable
from pipeline.report.page import Page
from pipeline.report.prompts_section import PromptsSection
from pipeline.report.tables import Table


def markdown_of(page: Page) -> str:
    """Write the whole page; pictures are report.png and the prompts' own files."""
    sections = [
        f"# {_md(page.name)}",
        *map(_md, filter(None, page.descriptions)),
        *(part for advice in page.advice for part in _advice(advice, page)),
        *(f"**{_md(sentence)}**" for sentence in page.sentences),
        *(["## Missing", _bullets(f"{gap.what}: {gap.command}" for gap in page.missing)] if page.missing else []),
        _table(_models(page.models)),
        "![Accuracy against latency](report.png)",
        *map(_table, page.tables),
        *(part for section in page.prompts for part in _prompts(section)),
        *(["## How it was measured", _bullets(page.protocol)] if page.protocol else []),
        _table(page.provenance),
        _bullets(page.environment),
        "Every package of the environment that wrote this: [report.cdx.json](report.cdx.json) (SBOM, CycloneDX).",
        "## Make it again",
        "\n".join(f"    {line}" for line in page.commands),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _advice(advice: Advice, page: Page) -> list[str]:
    of = f"({advice.data})" if len(page.advice) > 1 else ""
    verdict = f" ({advice.choice.verdict})" if advice.choice else ""
    return [
        f"## Recommended{of and f' {_md(of)}'}: {_md(advice.title)}{verdict}",
        _md(advice.numbers),
        _md(advice.asked),
        _bullets(advice.why),
    ]


def _models(models: ModelsTable) -> Table:
    numeric = frozenset(i for i, key in enumerate(models.columns) if key not in TEXT_COLUMNS)
    rows = [[row[key] for key in models.columns] for row in models.rows]
    return Table("Models", list(models.columns.values()), rows, numeric, models.notes)


def _prompts(prompts: PromptsSection) -> list[str]:
    return [
        f"## {_md(prompts.title)}",
        f"**{_md(prompts.sentence)}**",
        _md(prompts.legend),
        *(f"![{_md(picture.caption)}]({picture.path})" for picture in prompts.pictures),
        *(_table(table, "###") for table in prompts.tables),
        _bullets(prompts.notes),
    ]


def _table(table: Table, heading: str = "##") -> str:
    rules = ["---:" if column in table.numeric else "---" for column in range(len(table.columns))]
    rows = [[_md(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:])]
    return "\n".join([f"{heading} {table.title}", "", *lines, "", _bullets(table.notes)])


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {_md(item)}" for item in items)


def _md(text: str) -> str:
    """Keep a record's text from ending a table's cell or becoming markup."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*"), ("[", "\\[")):
        text = text.replace(sign, instead)
    return " ".join(text.split())
