"""COCO splits beside each other and their image files: what is odd is said at once, before anything is trained."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afpkd.data import coco, coco_files
from afpkd.data.coco import CocoSplit, read_canvas, read_coco
from afpkd.data.coco_batches import Scenes
from afpkd.data.coco_files import looked_at, with_repeats_told, with_tiny_told
from afpkd.errors import UserError
from tests.afpkd.test_coco import document, written
from tests.scenes import CANVAS, as_bombs, write_scenes

TURNED, TWICE = "images that their EXIF turns, used as stored", "images that are listed twice"
TAUGHT = "images that are training images, too: the score flatters"
CHOSEN = "images that are held-out images, too: epochs are chosen on them"


@pytest.fixture(name="split")
def _split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CocoSplit:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_scenes(tmp_path / "scenes", 6)


def looked(split: CocoSplit) -> CocoSplit:
    return looked_at(split, Path("instances.json"))


def test_all_odd_images_are_told_in_one_line(split: CocoSplit) -> None:
    assert looked(split) == split
    paths = [scene.path for scene in split.scenes]
    paths[0].unlink()
    paths[1].unlink()
    paths[1].mkdir()
    Image.new("RGB", (7, 5)).save(paths[3])
    paths[4].write_bytes(b"no image")
    with pytest.raises(UserError) as raised:
        looked(split)
    assert raised.value.code == "E_DATA_IMAGE"
    assert raised.value.message.startswith("instances.json: 4 of 6 images are not what is listed: ")
    for told in (f"{paths[0]} (no such file)", f"{paths[1]} (no such file)"):
        assert told in raised.value.message
    assert f"{paths[3]} (7x5 pixels, the annotations say 96x64), ...: mend the files" in raised.value.message


def test_of_very_many_images_the_existence_alone_is_looked_at(
    split: CocoSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_files, "MOST_OPENED", 5)
    monkeypatch.setattr(coco_files, "open_image", None)
    Image.new("RGB", (7, 5)).save(split.scenes[3].path)
    assert looked(split) == split
    split.scenes[2].path.unlink()
    with pytest.raises(UserError, match=r"1 of 6 images are not what is listed: .*scene2\.png \(no such file\)"):
        looked(split)


@pytest.mark.parametrize(("orientation", "num"), [(1, 0), (3, 1), (6, 1)])
def test_images_that_their_exif_turns_are_counted_and_used_as_stored(
    split: CocoSplit, orientation: int, num: int
) -> None:
    scene = split.scenes[0]
    stored = read_canvas(scene, CANVAS)[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(scene.path) as image:
        image.load()
    image.save(scene.path, exif=exif)
    assert looked(split).remarks.get(TURNED, 0) == num
    assert (read_canvas(scene, CANVAS)[0] == stored).all()


def test_a_bomb_among_the_scenes_of_a_training_is_not_decoded(split: CocoSplit) -> None:
    with as_bombs(), pytest.raises(UserError, match=r"scene0\.png: cannot be read \(Image size .*decompression bomb"):
        Scenes(split, CANVAS, (0.5,) * 3, (0.25,) * 3, torch.device("cpu"))


def test_a_reader_that_works_in_a_thread_leaves_the_filters_of_warnings_alone(
    split: CocoSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are global: eight threads that put them on and back would leave behind what another one had put on."""
    seen = []

    def stored(path: Path) -> Image.Image:
        seen.append(warnings.filters)
        return Image.open(path)

    monkeypatch.setattr(coco, "_stored", stored)
    read_canvas(split.scenes[0], CANVAS)
    assert [found is warnings.filters for found in seen] == [True]


def test_a_picture_that_is_listed_twice_is_told_whatever_it_is_called(split: CocoSplit) -> None:
    first, second, *rest = split.scenes
    shutil.copy(first.path, first.path.with_name("copy.png"))
    copied = first._replace(path=first.path.with_name("copy.png"))
    train = split._replace(scenes=[first, second, second, copied])
    taught, scored, other = with_repeats_told(
        train, split._replace(scenes=[copied, *rest]), split._replace(scenes=rest[:1])
    )
    assert (taught.remarks, scored.remarks, other.remarks) == ({TWICE: 2}, {TAUGHT: 1}, {CHOSEN: 1})
    assert [split.scenes for split in (taught, scored)] == [train.scenes, [copied, *rest]]


@pytest.mark.parametrize(("largest", "num"), [(1.0, 2), (2.0, 1), (8.0, 0)])
def test_boxes_that_a_canvas_makes_too_small_to_be_taught_are_counted(
    split: CocoSplit, largest: float, num: int
) -> None:
    """Scenes of 64x96 on a canvas of 32x48: halved."""
    boxes = np.array([[0, 0, 2, 30], [0, 0, 1.9, 30], [0, 0, 30, 0.5]], np.float32)
    first = split.scenes[0]._replace(boxes=boxes, labels=np.zeros(3, np.int64))
    empty = split.scenes[1]._replace(boxes=boxes[:0], labels=np.zeros(0, np.int64))
    told = with_tiny_told(split._replace(scenes=[first, empty]), (32, 48), largest)
    assert told.remarks.get("boxes under one pixel on the canvas, scored and never taught", 0) == num


def test_of_very_many_images_the_same_file_alone_is_the_same(split: CocoSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_files, "MOST_OPENED", 1)
    monkeypatch.setattr(coco_files, "file_hashes", None)
    first, second = split.scenes[:2]
    shutil.copy(first.path, second.path)
    taught, scored = with_repeats_told(split, split.chosen([0, 1, 1]))
    assert (taught.remarks, scored.remarks) == ({}, {TWICE: 1, TAUGHT: 2})


def test_another_splits_classes_must_be_the_same(tmp_path: Path) -> None:
    assert read_coco(written(tmp_path, document()), tmp_path, names=["cat", "dog"]).names == ["cat", "dog"]
    many = [f"class {number}" for number in range(80)]
    for names, told in (
        (["dog", "cat"], r"the same names in another order: by their ids, cat is number 0 here and dog is there"),
        (["cat", "cow", "dog"], r"its classes are not those of train: without cow$"),
        (["cat"], r"its classes are not those of train: with dog$"),
        (many, r"without class 0, class 1, class 2, class 3, \.\.\. and with cat, dog$"),
        (["cat", "dog", "dog"], r"2 of them, train has 3: one name stands for two$"),
    ):
        with pytest.raises(UserError) as raised:
            read_coco(written(tmp_path, document()), tmp_path, names=names)
        assert re.search(told, raised.value.message)
