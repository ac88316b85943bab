"""What the frequency prompts look at: a picture a level of each band's energy and, below it, its mask on the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.record import Json, atomic_path
from pipeline.lineage import PICTURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from afpkd.prompts import FrequencyPrompts

Maps = NDArray[np.float32]

NUM_PICTURED = 4  # images in a picture: more would be too small to see
SIDE, GAP = 108, 6  # pixels of a panel and between two: ten bands beside an input of twice the size are 1,400 wide
GROUP_GAP = 16  # between two scales, and between two images
LEFT, TOP, BOTTOM = 24, 68, 66  # for words
BAR = (160, 14)  # the colour bar
DPI, FONT, LINE = 100, 10.5, 17  # FONT in points
VEIL = 0.8  # share of the mask's colour in an overlay; the grey input must not change how a colour reads
COLOURS = "viridis"  # even steps of a mask look even, to the colour-blind too


class Band(NamedTuple):
    """One band of a level: its energy and its mask, N, H, W on the grid of the feature map."""

    name: str
    energy: Maps
    mask: Maps


class Layout(NamedTuple):
    """Where things stand, in pixels from the top left: a panel's (height, width), bands' lefts, images' tops."""

    panel: tuple[int, int]
    lefts: list[int]
    tops: list[int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole."""
        return self.floor + BOTTOM, self.lefts[-1] + self.panel[1] + GAP

    @property
    def floor(self) -> int:
        """Where the last panel ends."""
        return self.tops[-1] + 2 * self.panel[0] + GAP

    @property
    def bar(self) -> tuple[int, int]:
        """The colour bar's top and left."""
        return self.floor + 18, self.lefts[0]


def draw_prompts(
    prompts: FrequencyPrompts, features: list[Tensor], images: Tensor, statistics: Sequence[Json], folder: Path
) -> list[Path]:
    """Write `level<k>.png` for each banded level into `folder`, in place of those there; give their paths.

    images: uint8 N, C, H, W, a row of the picture each; features: the teacher's of these; statistics: the rows of
    `mask_statistics`, maybe of more images, for the titles. Equal input gives equal bytes.
    """
    for left in folder.glob(PICTURES):
        left.unlink()
    inputs = images.cpu().numpy().transpose(0, 2, 3, 1).astype(np.float32) / np.float32(255)
    paths = []
    for level in prompts.banded_levels():
        bands = _bands(prompts, features, level)
        rows = {row["band"]: row for row in statistics if row["level"] == level}
        figure = _figure(inputs, bands, [_title(band.name, rows.get(band.name)) for band in bands])
        paths.append(folder / f"level{level}.png")
        with atomic_path(paths[-1]) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
    return paths


def _bands(prompts: FrequencyPrompts, features: list[Tensor], level: int) -> list[Band]:
    import torch

    from afpkd.wavelet import band_names, haar_dwt

    scales = prompts.level_scales[level]
    with torch.no_grad():
        groups = haar_dwt(features[level].float(), scales)
        masks = prompts.pixel_masks(level, groups)
    height, width = features[level].shape[-2:]
    found = []
    for index, (group, mask) in enumerate(zip(groups, masks, strict=True)):
        cell = 2 ** (scales - max(index - 1, 0))  # pixels of the map under one of the band; an odd map's last are cut
        energy = group.square().mean(dim=1).sqrt()
        for both in zip(energy.unbind(1), mask.unbind(1), strict=True):
            maps = [tensor.cpu().numpy().astype(np.float32).repeat(cell, 1).repeat(cell, 2) for tensor in both]
            found.append([expanded[:, :height, :width] for expanded in maps])
    return [Band(name, energy, mask) for name, (energy, mask) in zip(band_names(scales), found, strict=True)]


def _title(name: str, row: Json | None) -> str:
    words = name if name == "low" else f"{name[:-1]} {name[-1]}"
    return words if row is None else f"{words}\nmask {row['mean']:.2f}\nspread {row['spread']:.2f}"


def _figure(inputs: Maps, bands: Sequence[Band], titles: Sequence[str]) -> Figure:
    """Compose the panels pixel by pixel, then write the words."""
    from matplotlib.figure import Figure

    layout = _layout(inputs, [band.name for band in bands])
    height, width = layout.size
    canvas = np.ones((height, width, 3), np.float32)
    for top, left, panel in _panels(layout, inputs, bands):
        canvas[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(canvas)
    for x, y, text, options in _words(layout, titles):
        figure.text(x / width, 1 - y / height, text, fontsize=FONT, **options)
    return figure


def _layout(inputs: Maps, names: Sequence[str]) -> Layout:
    num, height, width = inputs.shape[:3]
    scale = SIDE / max(height, width)
    panel = (round(height * scale), round(width * scale))
    lefts = [GAP + 2 * panel[1] + GAP + LEFT]
    for name in names[1:]:
        lefts.append(lefts[-1] + panel[1] + (GROUP_GAP if name.startswith("row") else GAP))
    return Layout(panel, lefts, [TOP + i * (2 * panel[0] + GAP + GROUP_GAP) for i in range(num)])


def _panels(layout: Layout, inputs: Maps, bands: Sequence[Band]) -> Iterator[tuple[int, int, Maps]]:
    """Top, left and pixels of each panel and of the colour bar."""
    height, width = layout.panel
    grey = inputs.mean(axis=-1)
    for i, top in enumerate(layout.tops):
        colour = inputs[i] if inputs.shape[-1] == 3 else np.stack([grey[i]] * 3, axis=-1)
        yield top, GAP, _stretched(colour, (2 * height + GAP, 2 * width + GAP))
        for left, band in zip(layout.lefts, bands, strict=True):
            energy = band.energy[i] / max(float(band.energy.max()), 1e-12)
            yield top, left, _stretched(np.stack([energy] * 3, axis=-1), layout.panel)
            under = _stretched(grey[i], layout.panel)
            yield top + height + GAP, left, _overlay(_stretched(band.mask[i], layout.panel), under)
    values = np.tile(np.linspace(0, 1, BAR[0], dtype=np.float32), (BAR[1], 1))
    yield *layout.bar, _overlay(values, np.full_like(values, 0.5))


def _stretched(image: Maps, size: tuple[int, int]) -> Maps:
    """Nearest pixels: what looks like one cell is one."""
    rows, columns = (np.arange(most) * have // most for most, have in zip(size, image.shape, strict=False))
    stretched: Maps = image[rows][:, columns]
    return stretched


def _overlay(mask: Maps, grey: Maps) -> Maps:
    """The mask's colour, one scale from 0 to 1 everywhere, as a veil over the grey input."""
    from matplotlib import colormaps

    veiled: Maps = VEIL * colormaps[COLOURS](mask)[..., :3] + (1 - VEIL) * grey[..., None]
    return veiled


def _words(layout: Layout, titles: Sequence[str]) -> Iterator[tuple[float, float, str, Json]]:
    """Each text with its place and its alignment."""
    height, width = layout.panel
    for x, title in ((GAP + width, "input"), *zip((left + width / 2 for left in layout.lefts), titles, strict=True)):
        for above, line in enumerate(reversed(title.splitlines())):  # one by one: a "g" must not lift the others
            yield x, TOP - 10 - LINE * above, line, {"ha": "center", "va": "baseline"}
    for top in layout.tops:
        for middle, text in ((top + height / 2, "energy"), (top + 1.5 * height + GAP, "mask")):
            yield layout.lefts[0] - 5, middle, text, {"ha": "right", "va": "center", "rotation": 90}
    top, left = layout.bar
    middle = top + BAR[1] / 2
    yield left - 5, middle, "mask 0", {"ha": "right", "va": "center_baseline"}
    yield left + BAR[0] + 5, middle, "1", {"ha": "left", "va": "center_baseline"}
    energy = "energy: from black, 0, to white, the band's largest"
    yield left, top + BAR[1] + 8, energy, {"ha": "left", "va": "top"}
