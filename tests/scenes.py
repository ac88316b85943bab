"""Scenes that can be learnt in seconds: on dark noise a bright square (class 0) and a tall red bar (class 1)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afpkd.data.coco import CocoSplit, read_coco
from afpkd.record import Json

CANVAS = (64, 96)
NAMES = ["square", "bar", "none"]
ID_OF = {"square": 3, "bar": 10, "none": 90}


def write_scenes(folder: Path, num: int, seed: int = 0) -> CocoSplit:
    """Write `num` images of 64x96 pixels and `instances.json` in COCO's format to `folder`, and read them back."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.PCG64(seed))
    images: list[Json] = []
    annotations: list[Json] = []
    for number in range(num):
        pixels = rng.integers(0, 60, (*CANVAS, 3), dtype=np.uint8)
        x, y = (int(value) for value in rng.integers(0, 32, 2))
        pixels[y : y + 24, x : x + 24] = 255
        pixels[y : y + 30, 70:82] = (200, 0, 0)
        name = f"scene{number}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": 5 * number + 2, "file_name": name, "height": CANVAS[0], "width": CANVAS[1]})
        for kind, box in (("square", [x, y, 24, 24]), ("bar", [70, y, 12, 30])):
            row = {"id": len(annotations) + 1, "image_id": 5 * number + 2, "category_id": ID_OF[kind]}
            annotations.append({**row, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": ID_OF[name], "name": name} for name in NAMES]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))
    return read_coco(folder / "instances.json", folder)


@contextmanager
def as_bombs() -> Iterator[None]:
    """Such images are decompression bombs to Pillow, and nobody but the program makes an error of its warning."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patched:
        warnings.simplefilter("ignore")
        patched.setattr(Image, "MAX_IMAGE_PIXELS", CANVAS[0] * CANVAS[1] - 1)
        yield
