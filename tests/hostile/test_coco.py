"""Annotation files of a stranger: what fits is read, the rest is left out and counted, or one line with a code."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from afpkd.data.coco import hold_out_scenes, read_canvas, read_coco, with_objects
from afpkd.errors import UserError
from afpkd.tasks.coco_metrics import average_precision
from tests.hostile.mutations import broken_bytes, broken_document, one_line
from tests.hostile.test_images import png

WHOLE: dict[str, Any] = {
    "info": {"year": 2026},
    "images": [{"id": number, "file_name": f"{number}.png", "width": 12, "height": 8} for number in (3, 7)],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 1, 4, 5], "area": 20, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 5, "bbox": [0.5, 2, 7, 3.25], "segmentation": [[1, 1, 4, 1, 4, 5]]},
        {"id": 5, "image_id": 7, "category_id": 5, "bbox": [0, 0, 12, 8], "iscrowd": 1},
        {"id": 6, "image_id": 7, "category_id": 2, "bbox": [3, 3, 2, 2], "area": 4.0},
    ],
    "categories": [{"id": 2, "name": "cup"}, {"id": 5, "name": "jug", "supercategory": "crockery"}],
}


class Found(NamedTuple):
    """What a detector saw on an image."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


FOUND = Found(np.array([[1, 1, 5, 6]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))


def changed(where: str, **values: Any) -> bytes:
    """The whole document, with other values in the first entry of a list."""
    found = copy.deepcopy(WHOLE)
    found[where][0].update(values)
    return json.dumps(found).encode()


TEXT = json.dumps(WHOLE).encode()
FILES: dict[str, bytes] = {
    "nothing": b"",
    "a number": b"3",
    "a list": b"[]",
    "nested without end": b"[" * 100_000,
    "objects nested without end": b'{"images":' * 100_000,
    "a number of 5,000 digits": TEXT.replace(b"20", b"2" * 5000, 1),
    "a number of 4,000 digits": TEXT.replace(b"20", b"2" * 4000, 1),
    "two bytes a character": TEXT.decode().encode("utf-16"),
    "latin letters": TEXT.replace(b"cup", b"caf\xe9"),
    "zeros": bytes(1000),
    "a list of lists": json.dumps({**WHOLE, "images": [[1, 2]]}).encode(),
    "no list": json.dumps({**WHOLE, "annotations": {"1": WHOLE["annotations"][0]}}).encode(),
    "an escape for a name": changed("categories", name="\x1b]0;owned\x07"),
    "two lines for a name": changed("categories", name="cup\nmug"),
    "no name": changed("categories", name=""),
    "a file beyond": changed("images", file_name="../../../etc/passwd"),
    "a file of nobody": changed("images", file_name="~nobody/\0.png"),
    "a file with a long name": changed("images", file_name="a" * 5000),
    "a folder for a file": changed("images", file_name="."),
    "a pipe for a file": changed("images", file_name="pipe.png"),
    "a bomb for a file": changed("images", file_name="bomb.png", width=50_000, height=50_000),
    "another size": changed("images", width=13),
    "a size beyond all": changed("images", width=2**63, height=2**63),
    "a size of nothing": changed("images", width=-12),
    "a size of a fraction": changed("images", width=12.5),
    "an id beyond int64": changed("images", id=2**80),
    "a deep id": changed("images", id=json.loads("[" * 500 + "]" * 500)),
    "a box beyond all": changed("annotations", bbox=[-1e308, -1e308, 1e308, 1e308]),
    "a box of booleans": changed("annotations", bbox=[True, False, True, True]),
    "a box of text": changed("annotations", bbox=["1", "1", "4", "5"]),
    "a box of 100,000 numbers": changed("annotations", bbox=[1] * 100_000),
    "a box turned round": changed("annotations", bbox=[9, 7, -4, -5]),
    "no area": changed("annotations", area=-0.0),
    "an area of nothing": changed("annotations", area="20"),
    "a crowd of a list": changed("annotations", iscrowd=[]),
    "half a crowd": changed("annotations", iscrowd=0.5),
    **{f"broken bytes {seed}": broken_bytes(TEXT, seed) for seed in range(20)},
    **{f"broken {seed}": json.dumps(broken_document(WHOLE, seed)).encode() for seed in range(60)},
}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder with the two images, and with what should not be opened."""
    for number in (3, 7):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "bomb.png").write_bytes(png(50_000, 50_000))
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_annotations_of_a_stranger_train_and_score_or_are_one_line(content: bytes, scenes: Path) -> None:
    (scenes / "instances.json").write_bytes(content)
    try:
        split = read_coco(scenes / "instances.json", scenes)
        taught = with_objects(hold_out_scenes(split, 1, seed=0)[0])
        for scene in (*split.scenes, *taught.scenes):
            pixels, scale = read_canvas(scene, (16, 16))
            assert (pixels.shape, np.isfinite(scale)) == ((3, 16, 16), True)
            assert np.isfinite(scene.boxes).all()
            assert (scene.areas > 0).all()
        average_precision(split, [FOUND for _ in split.scenes])
        assert all(name.splitlines() == [name] for name in split.names)
    except UserError as error:
        one_line(error)
        assert error.code.startswith("E_DATA_")


def test_the_file_that_they_are_broken_copies_of_is_read(scenes: Path) -> None:
    (scenes / "instances.json").write_bytes(TEXT)
    assert read_coco(scenes / "instances.json", scenes).told() == "2 images, 3 boxes, 2 classes; 1 boxes of crowds"
