"""Did phase 1 teach the prompts anything? Figures a constant mask cannot reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afpkd.control_masks import banded, constant, shuffled
from afpkd.evaluate import MOST_PIXELS, in_passes
from afpkd.learners import CLASSIFICATION, FrozenTeacher, prompted
from afpkd.models.outputs import AnyOutputs, joined
from afpkd.prompts import Change, FrequencyPrompts
from afpkd.record import Json
from afpkd.tasks.task import Task
from afpkd.wavelet import band_names, haar_dwt

LEAST_AGREEMENT = 80.0  # percent; a budget of a quarter costs the CIFAR-100 ResNet-56 nine points
MOST_KL_RATIO = 0.5
LEAST_MEAN = 0.05  # a band of which less is kept is dropped: its mask's spread says nothing
LEAST_KL = 1e-3  # nats: a shuffled mask that changes less drops nothing that matters, whatever the ratio
LEAST_SPREAD = 0.1  # of the band whose mask varies most over its pixels: below, the masks choose bands, not pixels
CHANGES: dict[str, Change | None] = {"shuffled": shuffled, "constant": constant, "banded": banded, "own": None}


def phase_one_report(
    prompts: FrequencyPrompts,
    teacher: FrozenTeacher,
    images: Tensor,
    task: Task = CLASSIFICATION,
    *,
    most_pixels: int = MOST_PIXELS,
) -> Json:
    """What the prompts do to the teacher on these normalised images, with four masks that keep an equal share.

    Of a level's coefficients: three quarters are the finest scale's, whereas the budget's area is the mean over bands.

    `own`: the prompts' masks; `banded`: each band's mean at all its pixels, so that `own` against it is what the choice
    of pixels is worth; `shuffled`: the same values at random bands and pixels; `constant`: the level's mean. For each
    `kl` (nats, temperature 1, the mean over images) and `agreement` (percent of equal answers) with the clean
    teacher. `overlap`: mean pairwise soft Jaccard of the tokens; `omega_std`: over channels; `masks`: mean and spread.

    most_pixels: of the images of one pass; swapped bands are those of the pass's next image.
    """
    parts = in_passes(images, most_pixels)
    with torch.no_grad():
        passes = [_pass(prompts, teacher, part) for part in parts]
    clean = joined([each.clean for each in passes])
    found: Json = {}
    for name in CHANGES:
        outputs = joined([each.changed[name] for each in passes])
        found[name] = {"kl": float(task.changed(outputs, clean, 1.0)), "agreement": task.agreement(outputs, clean)}
    shares = [len(part) / len(images) for part in parts]
    return {**found, **_mean([each.figures for each in passes], shares)}


class _Pass(NamedTuple):
    """What the teacher says of the images of one pass, clean and with each of `CHANGES`; figures that are means."""

    clean: AnyOutputs
    changed: dict[str, AnyOutputs]
    figures: Json


def _pass(prompts: FrequencyPrompts, teacher: FrozenTeacher, images: Tensor) -> _Pass:
    clean = teacher(images)
    changed: dict[str, AnyOutputs] = {}
    for name, change in CHANGES.items():
        outputs, reports = prompted(prompts, teacher, images, clean, change)
        changed[name] = outputs.without_maps()
    omegas = [prompts.position_weight(level, clean.features) for level in prompts.banded_levels()]
    figures = {
        "overlap": float(torch.stack([report.overlap for report in reports]).mean()),
        "omega_std": [float(omega.std(dim=1).mean()) for omega in omegas],
        "masks": mask_statistics(prompts, clean.features),
    }
    return _Pass(clean.without_maps(), changed, figures)


def _mean(rows: Sequence[Any], shares: list[float]) -> Any:
    """The weighted mean of each number of equal structures; names and numbers of levels stay."""
    first = rows[0]
    if isinstance(first, dict):
        return {key: _mean([row[key] for row in rows], shares) for key in first}
    if isinstance(first, list):
        return [_mean(each, shares) for each in zip(*rows, strict=True)]
    return sum(share * row for share, row in zip(shares, rows, strict=True)) if isinstance(first, float) else first


def why_not_accepted(report: Json) -> str | None:
    """One line that says why these prompts mark nothing worth marking; None where they do.

    They choose where the teacher still says the same with their masks, no longer with the same masks shuffled and less
    so with a constant mask of their share of coefficients, and where at least one band's mask varies over its pixels.
    (Averaged masks of mean 1/2 may vary, and shuffled ones harm more; the constant 1/2 leaves the teacher as it is.)
    """
    own, shuffled, constant = report["own"], report["shuffled"], report["constant"]
    if own["agreement"] < LEAST_AGREEMENT:
        return f"the prompted teacher agrees with itself on {own['agreement']:.1f} % of held-out images only"
    if shuffled["kl"] < LEAST_KL or own["kl"] > MOST_KL_RATIO * shuffled["kl"]:
        found = f"(KL {own['kl']:.3g} and {shuffled['kl']:.3g})"
        return f"its masks are no better than random ones that keep an equal share of coefficients {found}"
    if own["kl"] >= constant["kl"]:
        found = f"(KL {own['kl']:.3g} and {constant['kl']:.3g})"
        return f"a constant mask that keeps an equal share of coefficients changes less {found}"
    spreads = [row["spread"] for row in report["masks"] if row["mean"] > LEAST_MEAN]
    if max(spreads, default=0.0) < LEAST_SPREAD:
        return "its masks are constant over the pixels of every band that they keep"
    return None


def mask_statistics(prompts: FrequencyPrompts, features: list[Tensor]) -> list[Json]:
    """Mean and relative spatial spread (std / mean over the pixels of an image) of each level's and band's mask.

    A spread near 0 is a constant mask: the prompt marks nothing.
    """
    rows = []
    for level in prompts.banded_levels():
        scales = prompts.level_scales[level]
        with torch.no_grad():
            masks = prompts.pixel_masks(level, haar_dwt(features[level], scales))
        bands = [band for mask in masks for band in mask.flatten(2).unbind(1)]  # each N, h w
        for name, band in zip(band_names(scales), bands, strict=True):
            spread = (band.std(dim=1) / band.mean(dim=1).clamp_min(1e-6)).mean()
            rows.append({"level": level, "band": name, "mean": float(band.mean()), "spread": float(spread)})
    return rows
