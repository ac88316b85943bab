"""The report's section on phase 1: what the prompts look at, and whether their masks choose at all."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from afpkd.names import in_words
from afpkd.record import Json
from pipeline.report.records import Records
from pipeline.report.tables import Table
from pipeline.report.wording import NONE

NOT_RECORDED = "not recorded"

_MASKS = {
    "own": "the prompts' own",
    "banded": "each band's mean at all its pixels",
    "shuffled": "the same, shuffled over bands and pixels",
    "constant": "the level's mean everywhere",
}
_CHOOSE = "the teacher says the same with its prompts' masks and no longer with the same masks shuffled"
_LEGEND = (
    "Each row is an input that was held out. Above: the energy of each wavelet band of the teacher's feature map (root "
    "mean square over channels). Below: the mask that the prompts lay over that band, drawn over the input: bright is "
    "kept, dark is dropped. Row details are changes from row to row, that is horizontal edges; column details are "
    "upright ones; scale 1 is the finest. The titles have each mask's mean and its spread, as the table below."
)
_KNOWN = (
    "The teacher's weights come from elsewhere: it may have been trained on the held-out images, and then these "
    "figures are those of images that it knows."
)
_REFUSED = (
    "they lose what the teacher says, or are no better than random or constant masks "
    "with an equal share of coefficients"
)


class Picture(NamedTuple):
    """One level's picture: its path in the run, itself as a data URI, and what is to be seen."""

    path: str
    uri: str
    caption: str


class PromptsSection(NamedTuple):
    """Finished text, tables and pictures."""

    title: str
    sentence: str
    legend: str
    """How to read the pictures; empty where there are none."""
    pictures: list[Picture]
    tables: list[Table]
    notes: list[str]


def prompts_section(run: Records) -> PromptsSection | None:
    """Put phase 1 into words and pictures; None where the student's method has none.

    What a record of an earlier version does not say is "not recorded".
    """
    if run.prompts is None:
        return None
    metrics = run.prompts.get("metrics", {})
    rows = _dicts(metrics.get("masks"))
    notes = [
        *([] if run.pictures else [f"Pictures of the masks: {NOT_RECORDED}."]),
        *([] if rows else [f"Mean and spread of each mask: {NOT_RECORDED}."]),
        *([_KNOWN] if run.records.get("teacher", {"method": "unknown"})["method"] is None else []),
    ]
    tables = [_controls_table(metrics), _figures_table(metrics), *([_masks_table(rows)] if rows else [])]
    legend = _LEGEND if run.pictures else ""
    return PromptsSection(
        "What the prompts look at", _sentence(metrics), legend, _pictures(run.pictures), tables, notes
    )


def _sentence(metrics: Mapping[str, Any]) -> str:
    accepted = metrics.get("accepted")
    if accepted is None:
        return f"Whether the masks choose is {NOT_RECORDED}."
    if accepted:
        return f"The masks choose: {_CHOOSE}."
    return f"The masks do not choose: {_REFUSED}: the gain, if any, does not come from the prompts."


def _pictures(pictures: Mapping[str, bytes]) -> list[Picture]:
    found = []
    for path, png in pictures.items():
        level = path.rpartition("level")[2].removesuffix(".png")
        caption = f"Level {level} of the teacher: the energy of its wavelet bands, and the masks of its prompts"
        found.append(Picture(path, f"data:image/png;base64,{base64.b64encode(png).decode()}", caption))
    return found


def _controls_table(metrics: Mapping[str, Any]) -> Table:
    rows = []
    for name, words in _MASKS.items():
        found = metrics.get(name, {})
        rows.append([words, _number(found.get("kl"), "{:.4f}"), _number(found.get("agreement"), "{:.2f} %")])
    change = "Change of the teacher's answers" if "teacher_heldout_ap" in metrics else "KL to the teacher (nats)"
    columns = ["Masks", change, "Same answer as the teacher"]
    note = (
        "The teacher with its bands masked against the teacher as it is, on held-out images, with masks that keep an "
        "equal share of each level's coefficients (three quarters are the finest scale's, whereas phase 1's budget of "
        "area is the mean over bands). The prompts' own against each band's mean: what the choice of pixels adds to "
        "that of bands."
    )
    return Table("Do the masks choose?", columns, rows, frozenset({1, 2}), [note])


def _figures_table(metrics: Mapping[str, Any]) -> Table:
    omega = metrics.get("omega_std")
    levels = ", ".join(_number(value, "{:.3f}") for value in omega) if isinstance(omega, list) else NOT_RECORDED
    metric = "ap" if "teacher_heldout_ap" in metrics else "top1"
    held_out = f"Held-out {in_words(metric)} of the teacher"
    rows = [
        [held_out, _number(metrics.get(f"teacher_heldout_{metric}"), "{:.2f} %")],
        [f"{held_out} with its prompts", _number(metrics.get(f"prompted_heldout_{metric}"), "{:.2f} %")],
        ["Overlap of the tokens' masks (mean pairwise soft Jaccard)", _number(metrics.get("overlap"), "{:.3f}")],
        ["Spread of the masks (median)", _number(metrics.get("median_mask_spread"), "{:.3f}")],
        ["Standard deviation of the channel weights omega, a level", levels],
    ]
    return Table("Phase 1", ["Figure", "Value"], rows, frozenset({1}))


def _masks_table(masks: Sequence[Json]) -> Table:
    """Bands by levels: `mean (spread)`."""
    by_level: dict[int, dict[str, str]] = {}
    for row in masks:
        cell = f"{_number(row.get('mean'), '{:.2f}')} ({_number(row.get('spread'), '{:.2f}')})"
        by_level.setdefault(row["level"], {})[row["band"]] = cell
    bands = max(by_level.values(), key=len)  # the level with most scales has every band, coarse to fine
    rows = [[_band_words(band), *(found.get(band, NONE) for found in by_level.values())] for band in bands]
    notes = [
        "The mean of each mask over images and pixels, and in brackets its spread: the standard deviation over an "
        "image's pixels, divided by the mean. A spread near 0 is a constant mask: the prompt marks nothing.",
        *(["“-”: the level's map is too small for that scale."] if any(NONE in row for row in rows) else []),
    ]
    columns = ["Band", *(f"Level {level}" for level in by_level)]
    return Table("Masks: mean (spread)", columns, rows, frozenset(range(1, len(columns))), notes)


def _band_words(band: str) -> str:
    name = band.rstrip("0123456789")
    return f"{name} {band[len(name) :]}".rstrip()


def _dicts(value: Any) -> list[Json]:
    """The rows of a list; an earlier version kept something else under this key."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) and abs(value) < 1e18 else NOT_RECORDED
