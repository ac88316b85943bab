"""The image files of COCO splits, before any is decoded: missing ones, other sizes, the same picture twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afpkd.data.coco import CocoSplit, Scene, letterbox_scale
from afpkd.data.decoded import file_hashes
from afpkd.data.folder import bombs_are_errors, open_image
from afpkd.errors import UserError

MOST_OPENED = 20_000
"""Images of a split whose headers are read, and whose content tells them apart: seconds. COCO 2017 has 118,000."""

_THREADS = 8
_SHOWN = 3
_ORIENTATION = 0x0112  # of EXIF; 1: as stored


class _Header(NamedTuple):
    """What a file says before its pixels. fault: why it cannot be what is listed, in words; empty: it can."""

    fault: str
    turned: bool = False


def looked_at(split: CocoSplit, annotations: Path) -> CocoSplit:
    """The split, with a remark on images that their EXIF turns.

    UserError, with how many and the first few, where images are not there or, of up to `MOST_OPENED`, are not of the
    size that the annotations say.
    """
    opened = len(split.scenes) <= MOST_OPENED
    with bombs_are_errors(), ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(_header if opened else _existence, split.scenes))
    found = zip(split.scenes, headers, strict=True)
    faults = [f"{scene.path} ({header.fault})" for scene, header in found if header.fault]
    if faults:
        shown = ", ".join(faults[:_SHOWN]) + (", ..." if len(faults) > _SHOWN else "")
        told = f"{len(faults)} of {len(split.scenes)} images are not what is listed: {shown}"
        raise UserError("E_DATA_IMAGE", f"{annotations}: {told}: mend the files, or take them out of the annotations")
    return _with_remarks(split, {"images that their EXIF turns, used as stored": sum(h.turned for h in headers)})


def _existence(scene: Scene) -> _Header:
    return _Header("" if scene.path.is_file() else "no such file")


def _header(scene: Scene) -> _Header:
    missing = _existence(scene)
    if missing.fault:  # a pipe would be waited for
        return missing
    try:
        with open_image(scene.path) as image:
            width, height = image.size
            turned = False
            if image.format != "PNG" or "exif" in image.info:  # of a PNG without, Pillow decodes all to look for it
                with suppress(Exception):  # a decoder may raise anything of broken EXIF, which nobody needs
                    turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception as error:  # a decoder may raise anything of a broken file
        return _Header(" ".join(str(error).split())[:80] or type(error).__name__)
    if (height, width) != scene.size:
        hint = ", as its EXIF turns it" if (width, height) == scene.size else ""
        return _Header(f"{width}x{height} pixels, the annotations say {scene.size[1]}x{scene.size[0]}{hint}")
    return _Header("", turned)


def with_repeats_told(train: CocoSplit, *others: CocoSplit) -> Iterator[CocoSplit]:
    """The splits, with remarks on pictures that are listed twice, and on those that an earlier split has, too.

    others: the held-out split, then test.

    A picture: a file, and in splits of up to `MOST_OPENED` images its bytes, whatever the file is called.
    """
    splits = (train, *others)
    small = [split for split in splits if len(split.scenes) <= MOST_OPENED]
    known = _pictures({scene.path for split in small for scene in split.scenes})
    seen = [[known.get(scene.path, str(scene.path)) for scene in split.scenes] for split in splits]
    for place, (split, pictures) in enumerate(zip(splits, seen, strict=True)):
        taught, chosen = (len(set(earlier) & set(pictures)) for earlier in (seen[0], set().union(*seen[1:place])))
        yield _with_remarks(
            split,
            {
                "images that are listed twice": len(pictures) - len(set(pictures)),
                "images that are training images, too: the score flatters": taught if place else 0,
                "images that are held-out images, too: epochs are chosen on them": chosen,
            },
        )


def with_tiny_told(split: CocoSplit, canvas: tuple[int, int], largest: float) -> CocoSplit:
    """The split, with a remark on boxes that are under one pixel on the canvas even when scaled by `largest`."""
    num = 0
    for scene in split.scenes:
        sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]).min(axis=1, initial=np.inf)
        num += int((sides * letterbox_scale(scene.size, canvas) * largest < 1).sum())
    return _with_remarks(split, {"boxes under one pixel on the canvas, scored and never taught": num})


def _pictures(paths: Iterable[Path]) -> dict[Path, str]:
    """What each file is: its hash where it has as many bytes as another one, else where it lies, links followed."""
    real = {path: os.path.realpath(path) for path in paths}
    sizes = {name: Path(name).stat().st_size for name in set(real.values())}
    times = Counter(sizes.values())
    alike = [Path(name) for name, size in sizes.items() if times[size] > 1]
    if not alike:
        return dict(real)
    root = Path(os.path.commonpath([path.parent for path in alike]))
    hashes = file_hashes(root, alike)
    return {path: hashes.get(os.path.relpath(name, root), name) for path, name in real.items()}


def _with_remarks(split: CocoSplit, more: dict[str, int]) -> CocoSplit:
    return split._replace(remarks={**split.remarks, **{kind: count for kind, count in more.items() if count}})
