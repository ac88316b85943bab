"""The pictures of the prompts: what is drawn is read back from the pixels."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from afpkd.acceptance import mask_statistics
from afpkd.models.outputs import Shapes
from afpkd.prompts import FrequencyPrompts
from pipeline.prompt_pictures import SIDE, VEIL, draw_prompts

if TYPE_CHECKING:
    from pathlib import Path

SIZES = [(32, 32), (8, 8), (2, 2)]


class MadeByHand(FrequencyPrompts):
    """Prompts whose masks are 1 where `marks` says so of a cell's column (of `width`), and 0 elsewhere."""

    def pixel_masks(self, level: int, bands: list[Tensor]) -> list[Tensor]:
        masks = [torch.zeros_like(band[:, 0]) for band in bands]
        for mask in masks:
            mask[..., self.marks(mask.shape[-1])] = 1
        return masks

    @staticmethod
    def marks(width: int) -> slice:
        return slice(0, width // 2)


class LastColumn(MadeByHand):
    @staticmethod
    def marks(width: int) -> slice:
        return slice(width - 1, width)


def shapes(*sizes: tuple[int, int]) -> Shapes:
    return Shapes([4] * len(sizes), list(sizes), 4, 10)


def features_of(*sizes: tuple[int, int], num: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num, 4, *size, generator=generator) for size in sizes]


def black(num: int, size: int = 32) -> Tensor:
    return torch.zeros(num, 1, size, size, dtype=torch.uint8)


def pixels_of(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.round(imread(path)[..., :3] * 255).astype(np.uint8)


def runs_of_masks(path: Path) -> list[tuple[bool, int]]:
    """(marked?, pixels) of each stretch of 1 or 0 masks over a black input, along the first row that has both."""
    one, zero = (np.array(mpl.colormaps["viridis"](value)[:3]) * VEIL * 255 for value in (1.0, 0.0))
    pixels = pixels_of(path).astype(float)
    ones, zeros = (np.abs(pixels - colour).max(axis=-1) <= 1 for colour in (one, zero))
    row = next(i for i in range(len(pixels)) if ones[i].any() and zeros[i].any())
    states = np.where(ones[row], 1, np.where(zeros[row], 0, -1))
    return [(state == 1, len(list(found))) for state, found in itertools.groupby(states.tolist()) if state >= 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_a_banded_level_always_the_same_and_not_large(tmp_path: Path, channels: int) -> None:
    torch.manual_seed(0)
    prompts, features = FrequencyPrompts(shapes(*SIZES)), features_of(*SIZES)
    prompts.calibrate([features])
    noise = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8)  # compresses worst
    written = []
    for name in ("one", "two"):
        stale = tmp_path / name / "level9.png"
        stale.parent.mkdir()
        stale.touch()
        paths = draw_prompts(prompts, features, noise, mask_statistics(prompts, features), tmp_path / name)
        assert paths == sorted((tmp_path / name).iterdir()) == [tmp_path / name / f"level{k}.png" for k in (0, 1)]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    assert all(len(png) < 300_000 for png in written[0])
    shown = pixels_of(tmp_path / "one" / "level0.png")
    assert shown.shape[1] <= 1450
    assert {tuple(colour) for colour in noise[0].flatten(1).T.expand(-1, 3).tolist()} <= {
        tuple(colour) for colour in shown.reshape(-1, 3).tolist()
    }


def test_a_mask_is_drawn_where_it_marks(tmp_path: Path) -> None:
    path = draw_prompts(MadeByHand(shapes((32, 32))), features_of((32, 32)), black(4), [], tmp_path)[0]
    assert runs_of_masks(path) == [(True, SIDE // 2), (False, SIDE // 2)] * 10  # low and three details a scale


def test_a_mask_lies_over_the_pixels_it_was_computed_from(tmp_path: Path) -> None:
    """A map of 7 has 4 cells a row; the last one reaches over its edge and covers one pixel of it, not a quarter."""
    path = draw_prompts(LastColumn(shapes((7, 7))), features_of((7, 7), num=1), black(1, 28), [], tmp_path)[0]
    last = SIDE // 7
    assert runs_of_masks(path) == [(False, SIDE - last), (True, last)] * 4


def test_the_input_is_seen_through_the_mask(tmp_path: Path) -> None:
    prompts, features = MadeByHand(shapes((8, 8))), features_of((8, 8), num=1)
    dark, bright = black(1), torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    drawn = [pixels_of(draw_prompts(prompts, features, image, [], tmp_path)[0]) for image in (dark, bright)]
    lifts = np.unique(drawn[1].astype(int) - drawn[0].astype(int))
    assert set(lifts) <= {0, 255, *(round((1 - VEIL) * 255) + off for off in (-1, 0, 1))}
    assert len(lifts) > 2


def test_energy_is_the_root_mean_square_over_channels(tmp_path: Path) -> None:
    """3 and 4 in two of four channels: rms 2.5; half of it elsewhere: mid grey. No band but `low` has any."""
    feature = torch.zeros(1, 4, 8, 8)
    feature[:, 0], feature[:, 1] = 3.0, -4.0
    feature[..., 4:] /= 2
    path = draw_prompts(MadeByHand(shapes((8, 8))), [feature], black(1), [], tmp_path)[0]
    row = pixels_of(path)[100, :, 0]
    greys = [(grey, len(list(found))) for grey, found in itertools.groupby(row.tolist())]
    assert (128, SIDE // 2) in greys or (127, SIDE // 2) in greys
    assert greys.count((0, SIDE)) == 6


def test_titles_carry_the_statistics(tmp_path: Path) -> None:
    prompts, features = MadeByHand(shapes((8, 8))), features_of((8, 8))
    drawn = []
    for mean in (None, 0.25, 0.75):
        rows = [] if mean is None else [{"level": 0, "band": "low", "mean": mean, "spread": 1.0}]
        drawn.append(pixels_of(draw_prompts(prompts, features, black(4), rows, tmp_path)[0]))
    changed = [np.argwhere((drawn[0] != other).any(axis=-1)) for other in drawn[1:]]
    assert all(len(found) and found[:, 0].max() < 70 for found in changed)  # above the panels
    assert (drawn[1] != drawn[2]).any()
