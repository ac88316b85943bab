"""The stage `report`: records of one recipe or several -> one page for people, tables and pictures for documents.

Everything said comes from the records: the same records give the same report. Beside it lies report.cdx.json, the
packages of this environment with versions and licences (SBOM, CycloneDX).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from afpkd.record import Json, atomic_path, write_record, write_text
from pipeline.packages import write_sbom
from pipeline.report import KINDS
from pipeline.report.candidates import ONE_PROCESS, candidates_of
from pipeline.report.data_files import csv_of, json_of
from pipeline.report.drawings import write_drawings
from pipeline.report.markdown import markdown_of
from pipeline.report.page import Page, page_of
from pipeline.report.picture_data import NUM_BARS, curves_of, loss_curves_of
from pipeline.report.plots import bar_figures, curves_figure, loss_figures, scatter_figures
from pipeline.report.records import Records
from pipeline.report.tradeoff import Budget, standings

_DEVICES_DRAWN = 6  # with bars of their own

_CAPTIONS = {
    "tradeoff": "Accuracy of the exported file on the test set against the median latency of one call, each with its "
    f"95 % interval (of a single process moved out by {ONE_PROCESS:.0%} either way: the next lies elsewhere). Up and "
    "to the left is better; the dotted steps are the front, the ring is the recommended file. "
    "Circle fp32, square fp16, diamond int8; filled: VALID, hollow: WARN, a cross: INVALID.",
    "bars": f"The median of one call (short line: p90) and accuracy, the fastest on top; {NUM_BARS} files at most. "
    "Pale: INVALID.",
    "training": "Accuracy on the held-out part of the training set after each epoch. The large mark is the epoch whose "
    "weights are exported.",
    "losses": "The mean of each loss term over an epoch, with its weight in the sum that is minimised.",
}


def write_report(runs: Sequence[Records], out: Path, budget: Budget | None = None) -> dict[str, Path]:
    """Write report.{html,md,csv,json,png,svg,cdx.json} into `out`, each atomically; give their paths by kind.

    runs: of the recipes to compare, one at least. What is missing (a role, a profile) is named in the page with the
    command that makes it. budget: what the recommended file must keep to.
    """
    asked = budget or Budget()
    candidates = candidates_of(runs)
    standing = standings(candidates)
    page = page_of(runs, candidates, standing, asked)
    curves = curves_of(runs[0]) if len(runs) == 1 else []  # those of several recipes are in their own reports
    paths = {kind: out / f"report.{kind}" for kind in KINDS}
    write_text(paths["csv"], csv_of(runs, candidates, standing))
    write_record(paths["json"], json_of(page, runs, candidates, standing, asked))
    with ExitStack() as stack:
        drawn = [stack.enter_context(atomic_path(paths[kind])) for kind in ("png", "svg")]
        write_drawings(drawn, page.name, candidates, standing, curves)
    write_text(paths["md"], markdown_of(page))
    figures: dict[str, Any] = {}
    if candidates:
        figures["tradeoff"] = scatter_figures(
            candidates, standing, [found.choice for found in page.advice if found.choice]
        )
        figures["bars"] = dict(list(bar_figures(candidates, standing).items())[:_DEVICES_DRAWN])
    if curves:
        figures["training"] = {"": curves_figure(curves)}
        figures["losses"] = loss_figures(loss_curves_of(runs[0]))
    write_text(paths["html"], _html(page, figures))
    write_sbom(paths["cdx.json"])
    return paths


def _html(page: Page, figures: Mapping[str, Json]) -> str:
    """Fill the template; plotly.js comes in only where there is something to draw, for it weighs 5 MB."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        page=page, figures=figures, captions=_CAPTIONS, plotlyjs=get_plotlyjs() if figures else ""
    )
