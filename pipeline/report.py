"""The stage `report`: a run's records -> one page for people (HTML, Markdown, PNG) and one table for programs (CSV).

Everything said comes from the records: the same records give the same report.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from afpkd.record import Json, atomic_path, write_text
from pipeline.findings import Records, read_records
from pipeline.page import Page, page_of
from pipeline.plots import curves_figure, curves_of, points_of, scatter_figure, write_png
from pipeline.prompts_section import PromptsSection
from pipeline.tables import Table

_COLUMNS = {  # of the main table
    "model": "Model",
    "arch": "Architecture",
    "method": "Method",
    "precision": "Precision",
    "device": "Device",
    "top1": "Top-1 (%)",
    "num_params": "Parameters",
    "macs": "MACs (FLOPs/2)",
    "size": "File size",
    "p50": "p50 (ms)",
    "p90": "p90 (ms)",
    "p99": "p99 (ms)",
    "throughput": "Images/s",
    "memory": "Peak memory",
    "verdict": "Verdict",
    "reasons": "Reasons",
}
_TEXT_COLUMNS = {"model", "arch", "method", "precision", "device", "verdict", "reasons"}

_CAPTIONS = {
    "accuracy-latency": "Accuracy of the exported file on the test set against the median latency of one call; the "
    "whisker reaches to p90. Up and to the left is better. Filled: VALID; hollow: WARN; a cross: INVALID.",
    "training": "Accuracy on the held-out part of the training set after each epoch. The large mark is the epoch whose "
    "weights are exported.",
}

_CSV_COLUMNS = (
    *("recipe", "role", "arch", "method", "device", "precision", "mode", "scenario", "batch", "threads", "n"),
    *("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "throughput_images_per_s", "top1_percent"),
    *("num_params", "macs", "size_bytes", "peak_memory_bytes", "verdict", "reasons", "preset"),
    *("runtime", "runtime_version", "seed", "config_digest", "finished_at"),
)


def write_report(
    run_dir: Path, *, recipe_name: str, description: str, expected: Mapping[str, Json] | None = None
) -> dict[str, Path]:
    """Write report.{html,md,csv,png} into `run_dir`, each atomically; give their paths by kind.

    `expected` are published numbers to stand beside ours: name -> {"top1": percent, "source": text}. What is missing
    (a role, a profile) is named with the command that makes it. UserError: a broken record, or none at all.
    """
    run = read_records(run_dir, recipe_name)
    page = page_of(run, description, expected or {})
    points, curves = points_of(run), curves_of(run)
    figures = {}
    if points:
        figures["accuracy-latency"] = scatter_figure(points)
    if curves:
        figures["training"] = curves_figure(curves)
    paths = {kind: run_dir / f"report.{kind}" for kind in ("html", "md", "csv", "png")}
    write_text(paths["csv"], _csv(run))
    with atomic_path(paths["png"]) as temporary:
        write_png(temporary, recipe_name, points, curves)
    write_text(paths["md"], _markdown(page))
    write_text(paths["html"], _html(page, figures))
    return paths


def _html(page: Page, figures: Mapping[str, Any]) -> str:
    """Fill the template; plotly.js comes in only where there is something to draw, for it weighs 5 MB."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        page=page,
        columns=_COLUMNS,
        figures=figures,
        captions=_CAPTIONS,
        plotlyjs=get_plotlyjs() if figures else "",
    )


def _markdown(page: Page) -> str:
    header = list(_COLUMNS.values())
    numeric = frozenset(i for i, key in enumerate(_COLUMNS) if key not in _TEXT_COLUMNS)
    main = Table("Models", header, [[row[key] for key in _COLUMNS] for row in page.rows], numeric, page.footnotes)
    sections = [
        f"# {_md(page.name)}",
        _md(page.description),
        f"**{_md(page.headline.sentence)}**",
        *(["## Missing", _bullets(f"{gap.what}: {gap.command}" for gap in page.missing)] if page.missing else []),
        _md_table(main),
        "![Accuracy against latency, and accuracy by epoch](report.png)",
        *map(_md_table, page.tables),
        *(_md_prompts(page.prompts) if page.prompts else []),
        *(["## How it was measured", _bullets(page.protocol)] if page.protocol else []),
        _md_table(page.provenance),
        _bullets(page.environment),
        "## Make it again",
        "\n".join(f"    {line}" for line in page.commands),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _md_prompts(prompts: PromptsSection) -> list[str]:
    return [
        f"## {prompts.title}",
        f"**{_md(prompts.sentence)}**",
        _md(prompts.legend),
        *(f"![{_md(picture.caption)}]({picture.path})" for picture in prompts.pictures),
        *(_md_table(table, "###") for table in prompts.tables),
        _bullets(prompts.notes),
    ]


def _md_table(table: Table, heading: str = "##") -> str:
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


def _csv(run: Records) -> str:
    """One row a row of the profiles, nothing rounded; units are in the columns' names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for profile in run.profiles:
        writer.writerows(_csv_row(run, profile, row) for row in profile["rows"])
    return text.getvalue()


def _csv_row(run: Records, profile: Json, row: Json) -> Json:
    record = run.records.get(profile["role"], {})
    flat = {
        "recipe": run.name,
        **{f"latency_{name}_ms": value for name, value in row["latency_ms"].items()},
        "throughput_images_per_s": row["throughput_ips"],
        "top1_percent": row["top1"],
        "reasons": "; ".join(row["reasons"]),
        "runtime": profile["runtime"]["name"],
        "runtime_version": profile["runtime"]["version"],
    }
    sources = {**record, **profile, **row, **flat}
    return {column: sources.get(column) for column in _CSV_COLUMNS}
