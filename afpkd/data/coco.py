"""Anybody's COCO-format annotations (Lin et al. 2014), cleaned; images as pixels on one fixed canvas. numpy only.

{"images": [{id, file_name, width, height}], "annotations": [{image_id, category_id, bbox: [x, y, w, h], ...}],
"categories": [{id, name}]}; ids may have gaps. What cannot be used is left out, counted and told: never silently.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from afpkd.data.dataset import Images
from afpkd.data.folder import bombs_are_errors, eight_bits, open_image
from afpkd.errors import UserError
from afpkd.names import require_lines
from afpkd.record import Json

if TYPE_CHECKING:
    from PIL.Image import Image

Boxes = NDArray[np.float32]
"""M, 4: left, top, right, bottom in pixels."""

_MOST_PIXELS = 1e9  # of a side: more, infinity and what is no number are no box
_MOST_ID = 2**63  # what an int64 holds
_WHOLE = ("id", "image_id", "category_id", "height", "width")
_LEAST_SIDE = 1e-3  # pixels: a box thinner than this, within its image, has no area
_READERS = 8  # threads


class Scene(NamedTuple):
    """One image: where it lies, and what is on it, in its own pixels."""

    id: int
    path: Path
    size: tuple[int, int]
    """Height, width."""
    boxes: Boxes
    """Of single objects, within the image."""
    labels: NDArray[np.int64]
    """Numbers in the list of classes, 0-based without gaps."""
    areas: NDArray[np.float64]
    """What small, medium, large are judged by: the annotation's own (of its mask), else the box's."""
    crowds: Boxes
    """Of crowds: never taught, and what is found inside costs nothing."""
    crowd_labels: NDArray[np.int64]


class CocoSplit(NamedTuple):
    """The scenes of one annotation file. remarks: what was left out, by kind; names: the classes."""

    scenes: list[Scene]
    names: list[str]
    remarks: dict[str, int]
    sha256: str
    """Of the annotation file."""

    def told(self) -> str:
        """One line: how many images and boxes, and what was left out."""
        boxes = sum(len(scene.labels) for scene in self.scenes)
        left = "".join(f"; {count} {kind}" for kind, count in self.remarks.items() if count)
        return f"{len(self.scenes)} images, {boxes} boxes, {len(self.names)} classes{left}"

    def chosen(self, indices: Sequence[int]) -> CocoSplit:
        """Some of the scenes."""
        return self._replace(scenes=[self.scenes[index] for index in indices])


def read_coco(annotations: Path, images: Path, *, names: Sequence[str] | None = None) -> CocoSplit:
    """Read an annotation file; `images`: the folder of its images. Classes are numbered in the order of their ids.

    names: the classes that another split has: UserError where these are not the same. UserError, naming file and entry,
    for anything that is no COCO file: what can be left out is left out and counted in `remarks`.
    """
    found = _document(annotations)
    categories = sorted(
        _entries(found, "categories", annotations), key=lambda entry: int(_of(entry, "id", annotations))
    )
    own_names = [str(_of(entry, "name", annotations)) for entry in categories]
    numbers = {int(entry["id"]): number for number, entry in enumerate(categories)}
    if not categories or len(numbers) != len(categories):
        raise UserError(
            "E_DATA_COCO", f"{annotations}: categories: none, or two with one id: every class needs an id of its own"
        )
    require_lines("E_DATA_COCO", annotations, own_names)
    if names is not None and own_names != list(names):
        raise UserError(
            "E_DATA_CLASSES", f"{annotations}: its classes are not those of train: {_difference(own_names, names)}"
        )
    remarks: Counter[str] = Counter()
    by_image = _annotations_by_image(found, annotations, numbers, remarks)
    scenes = []
    for entry in _entries(found, "images", annotations):
        identity = int(_of(entry, "id", annotations))
        size = int(_of(entry, "height", annotations)), int(_of(entry, "width", annotations))
        if not 1 <= min(size) <= max(size) < _MOST_PIXELS:
            raise UserError("E_DATA_COCO", f"{annotations}: image {identity} is {size[1]}x{size[0]} pixels")
        path = images / str(_of(entry, "file_name", annotations))
        scenes.append(_scene(identity, path, size, by_image.pop(identity, []), remarks))
    remarks["boxes of images that are not listed"] += sum(map(len, by_image.values()))
    if not scenes or len({scene.id for scene in scenes}) != len(scenes):
        raise UserError(
            "E_DATA_COCO", f"{annotations}: images: none, or two with one id: every image needs an id of its own"
        )
    sha256 = hashlib.sha256(annotations.read_bytes()).hexdigest()
    return CocoSplit(scenes, own_names, dict(sorted((+remarks).items())), sha256)


def read_canvases(scenes: Iterable[Scene], canvas: tuple[int, int]) -> list[tuple[Images, float]]:
    """`read_canvas` of each, in their order, by several threads: decoding gives the interpreter's lock away."""
    with bombs_are_errors(), ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda scene: read_canvas(scene, canvas), scenes))


def read_canvas(scene: Scene, canvas: tuple[int, int]) -> tuple[Images, float]:
    """The image as uint8 3, H, W, letterboxed on a black canvas from its top left corner, and the scale applied.

    scale: canvas pixels an image pixel, the same both ways; boxes times scale are boxes on the canvas. UserError where
    the file is missing, broken, or not of the size that the annotations say (EXIF rotation is not applied: boxes mean
    the pixels as stored). `read_canvases` also refuses decompression bombs.
    """
    from PIL import Image

    try:
        image = _stored(scene.path)
    except Exception as error:  # a decoder may raise anything of a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            "E_DATA_IMAGE", f"{scene.path}: cannot be read ({reason}): mend the file, or take it out of the annotations"
        ) from None
    if (image.height, image.width) != scene.size:
        told = f"{image.width}x{image.height} pixels, the annotations say {scene.size[1]}x{scene.size[0]}"
        hint = ": boxes mean the pixels as stored, not as its EXIF turns them" if image.size == scene.size else ""
        raise UserError("E_DATA_IMAGE", f"{scene.path}: {told}{hint}")
    scale = letterbox_scale(scene.size, canvas)
    height, width = (max(1, round(side * scale)) for side in scene.size)
    if (height, width) != scene.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    placed = np.zeros((3, *canvas), dtype=np.uint8)
    placed[:, :height, :width] = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
    return placed, scale


def _stored(path: Path) -> Image:
    """The pixels as they lie in the file, RGB."""
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError("no such file")
    with open_image(path) as opened:
        return eight_bits(opened, opened.format).convert("RGB")


def letterbox_scale(size: tuple[int, int], canvas: tuple[int, int]) -> float:
    """The largest scale at which an image of `size` (H, W) fits the canvas with its proportions kept."""
    return min(canvas[0] / size[0], canvas[1] / size[1])


def hold_out_scenes(split: CocoSplit, num: int, seed: int) -> tuple[CocoSplit, CocoSplit]:
    """Split at random (seeded) into (rest, held-out): epochs and hyper-parameters are chosen on held-out only."""
    if not 0 < num < len(split.scenes):
        raise UserError(
            "E_DATA_LITTLE", f"data.heldout: must lie between 0 and {len(split.scenes)} training images, got {num}"
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(split.scenes))
    return split.chosen(sorted(order[num:].tolist())), split.chosen(sorted(order[:num].tolist()))


def with_objects(split: CocoSplit) -> CocoSplit:
    """Without the images on which nothing is marked: training learns nothing from most of them; counted."""
    kept = [index for index, scene in enumerate(split.scenes) if len(scene.labels)]
    if not kept:
        raise UserError("E_DATA_COCO", "the training annotations mark no object that can be used")
    empty = len(split.scenes) - len(kept)
    return split.chosen(kept)._replace(remarks={**split.remarks, **({"images without boxes": empty} if empty else {})})


def repeated(split: CocoSplit, times: int) -> CocoSplit:
    """Every scene so many times: one epoch of it is as many of the split itself."""
    return split.chosen(list(range(len(split.scenes))) * times)


def _document(path: Path) -> Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))  # tools of Windows put a mark before it
    except OSError as error:
        raise UserError("E_DATA_COCO", f"{path}: {error.strerror or error}: name a COCO annotation file") from None
    except (ValueError, RecursionError) as error:
        raise UserError("E_DATA_COCO", f"{path}: not a JSON file: {error}") from None
    if not isinstance(found, dict):
        raise UserError(
            "E_DATA_COCO", f"{path}: not a COCO file: an object with images, annotations and categories was expected"
        )
    return found


def _entries(found: Json, key: str, path: Path) -> list[Json]:
    entries = found.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError("E_DATA_COCO", f"{path}: not a COCO file: a list of objects was expected under '{key}'")
    return entries


def _of(entry: Json, key: str, path: Path) -> Any:
    value = entry.get(key)
    if value is None:
        raise _mistake(path, entry, key, "a value was expected")
    if key in _WHOLE and not (isinstance(value, int) and abs(value) < _MOST_ID):
        raise _mistake(path, entry, key, "a whole number (of 64 bits) was expected")
    return value


def _mistake(path: Path, entry: Json, key: str, expected: str) -> UserError:
    shown = {name: value for name, value in entry.items() if isinstance(value, str | int | float)}
    told = f"{path}: '{key}' of {str(shown)[:80]} is {reprlib.repr(entry.get(key))}: {expected}"
    return UserError("E_DATA_COCO", told)


def _annotations_by_image(
    found: Json, path: Path, numbers: dict[int, int], remarks: Counter[str]
) -> dict[int, list[tuple[Json, int]]]:
    """(annotation, class) by image; those of no class are counted."""
    by_image: dict[int, list[tuple[Json, int]]] = {}
    for entry in _entries(found, "annotations", path):
        number = numbers.get(int(_of(entry, "category_id", path)))
        box = entry.get("bbox") or []  # of a crowd some tools write the mask alone
        if not isinstance(box, list) or len(box) not in (0, 4) or not all(isinstance(v, int | float) for v in box):
            raise _mistake(path, entry, "bbox", "four numbers were expected: x, y, w, h")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise _mistake(path, entry, "iscrowd", "0 or 1 was expected")
        if number is None:
            remarks["boxes of a category that is not listed"] += 1
        elif not box:
            remarks["annotations without a box"] += 1
        elif not all(abs(v) < _MOST_PIXELS for v in box):
            remarks["boxes that are not finite"] += 1
        else:
            by_image.setdefault(int(_of(entry, "image_id", path)), []).append((entry, number))
    return by_image


def _scene(
    identity: int, path: Path, size: tuple[int, int], entries: list[tuple[Json, int]], remarks: Counter[str]
) -> Scene:
    single: list[tuple[Boxes, int, float]] = []
    crowds: list[tuple[Boxes, int, float]] = []
    for entry, number in entries:
        x, y, width, height = map(float, entry["bbox"])
        box = np.array([x, y, x + width, y + height])
        inside = np.clip(box, 0, [size[1], size[0], size[1], size[0]])
        if min(inside[2] - inside[0], inside[3] - inside[1]) < _LEAST_SIDE:
            remarks["boxes without area in their image"] += 1
            continue
        if np.abs(inside - box).max() > 0.5:  # half a pixel is rounding
            remarks["boxes cut at the edge of their image"] += 1
        crowd = bool(entry.get("iscrowd", 0))
        remarks["boxes of crowds"] += crowd
        area = entry.get("area")
        if not isinstance(area, int | float) or not 0 < area < _MOST_PIXELS**2:
            area = (inside[2] - inside[0]) * (inside[3] - inside[1])
        (crowds if crowd else single).append((inside.astype(np.float32), number, float(area)))
    boxes, labels, areas = _columns(single)
    crowd_boxes, crowd_labels, _ = _columns(crowds)
    return Scene(identity, path, size, boxes, labels, areas, crowd_boxes, crowd_labels)


def _columns(rows: list[tuple[Boxes, int, float]]) -> tuple[Boxes, NDArray[np.int64], NDArray[np.float64]]:
    boxes = np.stack([box for box, _, _ in rows]) if rows else np.zeros((0, 4), np.float32)
    return boxes, np.array([label for _, label, _ in rows], np.int64), np.array([area for *_, area in rows], np.float64)


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """What is missing in our classes, what is there beyond theirs; of equal sets the first that stands elsewhere."""
    missing, extra = ([name for name in one if name not in other] for one, other in ((theirs, ours), (ours, theirs)))
    told = [f"{word} {_few(found)}" for word, found in (("without", missing), ("with", extra)) if found]
    if told:
        return " and ".join(told)
    if len(ours) != len(theirs):
        return f"{len(ours)} of them, train has {len(theirs)}: one name stands for two"
    place = next(number for number, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    told_place = f"by their ids, {ours[place]} is number {place} here and {theirs[place]} is there"
    return f"the same names in another order: {told_place}: give every class one id"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
