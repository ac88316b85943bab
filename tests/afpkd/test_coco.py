"""COCO data: what is left out is counted, ids may have gaps, boxes follow their pixels."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afpkd.data.batches import Augmentation, generator_for
from afpkd.data.coco import (
    CocoSplit,
    hold_out_scenes,
    letterbox_scale,
    read_canvas,
    read_coco,
    repeated,
    with_objects,
)
from afpkd.data.coco_batches import Placing, Scenes, placed_boxes, placed_images, random_placing
from afpkd.errors import UserError
from afpkd.record import Json

CPU = torch.device("cpu")


def document() -> Json:
    """Three images and ids with gaps; every kind of box that cannot be taught."""
    boxes: list[tuple[int, int, list[float], int]] = [
        (70, 9, [1, 2, 10, 8], 0),
        (70, 4, [-5, -5, 15, 10], 0),  # cut at the edge
        (70, 4, [50, 5, 10, 10], 0),  # outside
        (70, 4, [5, 5, 0, 7], 0),  # no width
        (70, 9, [0, 0, 30, 20], 1),  # a crowd
        (70, 9, [2, float("nan"), 3, 3], 0),
        (70, 77, [2, 2, 3, 3], 0),  # a category that is not listed
        (12, 4, [3.5, 1.25, 4, 6], 0),
        (99, 4, [3, 3, 4, 6], 0),  # an image that is not listed
    ]
    return {
        "images": [
            {"id": 70, "file_name": "b.png", "width": 40, "height": 20},
            {"id": 12, "file_name": "a.png", "width": 20, "height": 30},
            {"id": 500, "file_name": "empty.png", "width": 8, "height": 8},
        ],
        "annotations": [
            {"id": 100 + n, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            for n, (image, category, box, crowd) in enumerate(boxes)
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    }


def written(folder: Path, found: Json) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(found))
    return path


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    found = document()
    rng = np.random.Generator(np.random.PCG64(3))
    for image in found["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    return read_coco(written(tmp_path, found), tmp_path)


def test_what_cannot_be_used_is_left_out_and_counted(split: CocoSplit) -> None:
    assert split.names == ["cat", "dog"]  # by id
    assert split.remarks == {
        "boxes cut at the edge of their image": 1,
        "boxes of a category that is not listed": 1,
        "boxes of crowds": 1,
        "boxes of images that are not listed": 1,
        "boxes that are not finite": 1,
        "boxes without area in their image": 2,
    }
    first, second, empty = split.scenes
    assert (first.id, second.id, empty.id) == (70, 12, 500)
    assert first.boxes.tolist() == [[1, 2, 11, 10], [0, 0, 10, 5]]
    assert first.labels.tolist() == [1, 0]
    assert first.areas.tolist() == [80, 50]
    assert (first.crowds.tolist(), first.crowd_labels.tolist()) == ([[0, 0, 30, 20]], [1])
    assert second.boxes.tolist() == [[3.5, 1.25, 7.5, 7.25]]
    assert len(empty.boxes) == 0
    assert split.told().startswith("3 images, 3 boxes, 2 classes; 1 boxes cut")


def test_training_leaves_images_without_boxes_out_and_says_so(split: CocoSplit) -> None:
    taught = with_objects(split)
    assert [scene.id for scene in taught.scenes] == [70, 12]
    assert taught.remarks["images without boxes"] == 1
    with pytest.raises(UserError, match="mark no object"):
        with_objects(split.chosen([2]))
    assert [scene.id for scene in repeated(taught, 2).scenes] == [70, 12, 70, 12]


@pytest.mark.parametrize("box", [[], None, "no key"])
def test_an_annotation_without_a_box_is_left_out_and_counted(box: Any, tmp_path: Path) -> None:
    """A crowd whose region is a run-length mask alone, as some tools write it."""
    found = document()
    row = {**found["annotations"][4], "segmentation": {"counts": [3, 4], "size": [20, 40]}, "bbox": box}
    found["annotations"][4] = {key: value for key, value in row.items() if value != "no key"}
    remarks = read_coco(written(tmp_path, found), tmp_path).remarks
    assert (remarks["annotations without a box"], remarks.get("boxes of crowds")) == (1, None)


def test_a_mark_of_the_byte_order_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "marked.json"
    path.write_text(json.dumps(document()), encoding="utf-8-sig")
    assert read_coco(path, tmp_path).names == ["cat", "dog"]


@pytest.mark.parametrize("huge", [2**70, 10**400, math.inf, math.nan, -(2**70)])
def test_numbers_that_no_image_has_are_no_boxes_and_no_areas(huge: float, tmp_path: Path) -> None:
    (box, whole), found = ([2, huge, 3, 3], [1, 2, 10, 8]), document()
    for row, changed in zip(found["annotations"], ({"bbox": box}, {"bbox": whole, "area": huge}), strict=False):
        row.update(changed)
    split = read_coco(written(tmp_path, found), tmp_path)
    assert split.remarks["boxes that are not finite"] == 2
    assert [scene.areas.tolist() for scene in split.scenes if scene.id == 70] == [[80.0]]


def test_holding_out_is_seeded_and_splits(split: CocoSplit) -> None:
    rest, heldout = hold_out_scenes(split, 1, seed=5)
    assert sorted(scene.id for part in (rest, heldout) for scene in part.scenes) == [12, 70, 500]
    assert hold_out_scenes(split, 1, seed=5)[1].scenes[0].id == heldout.scenes[0].id
    assert len({hold_out_scenes(split, 1, seed=seed)[1].scenes[0].id for seed in range(20)}) == 3
    with pytest.raises(UserError, match="heldout"):
        hold_out_scenes(split, 3, seed=5)


BROKEN: dict[str, tuple[Any, str]] = {
    "no object": ([], "not a COCO file"),
    "no images": ({"annotations": [], "categories": [{"id": 1, "name": "a"}]}, "under 'images'"),
    "no categories": ({**document(), "categories": []}, "categories: none"),
    "categories of one id": ({**document(), "categories": [{"id": 1, "name": "a"}] * 2}, "two with one id"),
    "images of one id": ({**document(), "images": document()["images"][:1] * 2}, "images: none, or two with one id"),
    "no size": ({**document(), "images": [{"id": 1, "file_name": "a.png"}]}, "'height' of"),
    "a size of nothing": ({**document(), "images": [{"id": 1, "file_name": "a", "width": 0, "height": 2}]}, "0x2"),
    "text for an id": (
        {**document(), "images": [{"id": "x", "file_name": "a", "width": 1, "height": 2}]},
        "is 'x': a whole number",
    ),
    "an id beyond int64": (
        {**document(), "categories": [{"id": 2**63, "name": "a"}]},
        "a whole number (of 64 bits) was expected",
    ),
    "a size beyond all": (
        {**document(), "images": [{"id": 1, "file_name": "a", "width": 10**9, "height": 2}]},
        "10000",
    ),
    "a box of three": (
        {**document(), "annotations": [{"category_id": 4, "image_id": 70, "bbox": [1, 2, 3]}]},
        "'bbox'",
    ),
    "text for a crowd": (
        {**document(), "annotations": [{"category_id": 4, "image_id": 70, "bbox": [1, 2, 3, 4], "iscrowd": "0"}]},
        "'iscrowd' of",
    ),
    "no category": ({**document(), "annotations": [{"image_id": 70, "bbox": [1, 2, 3, 4]}]}, "'category_id'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_coco_file_is_one_line(case: str, tmp_path: Path) -> None:
    found, said = BROKEN[case]
    with pytest.raises(UserError, match=r"instances\.json") as caught:
        read_coco(written(tmp_path, found), tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_annotation_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(UserError, match="not a JSON file"):
        read_coco(tmp_path / "cut.json", tmp_path)


def test_letterboxed_pixels_keep_their_proportions_and_the_rest_is_black(split: CocoSplit) -> None:
    scene = split.scenes[0]  # 40 x 20
    same, scale = read_canvas(scene, (20, 40))
    assert scale == 1
    assert np.array_equal(same, np.asarray(Image.open(scene.path)).transpose(2, 0, 1))
    canvas, scale = read_canvas(scene, (32, 32))
    assert scale == letterbox_scale((20, 40), (32, 32)) == 0.8
    assert canvas.shape == (3, 32, 32)
    assert not canvas[:, 16:].any()
    assert canvas[:, :16].mean() == pytest.approx(np.asarray(Image.open(scene.path)).mean(), abs=3)


def test_missing_broken_and_misdescribed_images_are_one_line(split: CocoSplit, tmp_path: Path) -> None:
    scene = split.scenes[0]
    with pytest.raises(UserError, match=r"gone\.png"):
        read_canvas(scene._replace(path=tmp_path / "gone.png"), (8, 8))
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(UserError, match=r"script\.png: cannot be read \(a file of EPS"):  # not run, that is
        read_canvas(scene._replace(path=tmp_path / "script.png"), (8, 8))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: cannot be read \(no such file\)"):
        read_canvas(scene._replace(path=tmp_path / "pipe.png"), (8, 8))
    (tmp_path / "cut.png").write_bytes(scene.path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"cut\.png: cannot be read"):
        read_canvas(scene._replace(path=tmp_path / "cut.png"), (8, 8))
    with pytest.raises(UserError, match="40x20 pixels, the annotations say 41x20 "):
        read_canvas(scene._replace(size=(20, 41)), (8, 8))
    with pytest.raises(UserError, match="say 20x40: boxes mean the pixels as stored, not as its EXIF turns them"):
        read_canvas(scene._replace(size=(40, 20)), (8, 8))


def squares(canvas: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """A dark content of 40 x 24 pixels with two bright rectangles, and their boxes."""
    boxes = torch.tensor([[4.0, 6.0, 12.0, 14.0], [24.0, 10.0, 36.0, 20.0]])
    image = torch.zeros(1, 3, *canvas, dtype=torch.uint8)
    for left, top, right, bottom in boxes.int().tolist():
        image[0, :, top:bottom, left:right] = 255
    return image, torch.tensor([[40.0, 24.0]]), {"boxes": boxes, "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.6])
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_follow_their_pixels(factor: float, *, mirrored: bool) -> None:
    canvas = (32, 48)
    image, content, target = squares(canvas)
    left, top = (8.0, 3.0) if factor > 1 else (0.0, 0.0)
    placing = Placing(*(torch.tensor([value]) for value in (mirrored, factor, left, top)))
    moved = placed_images(image, content, placing)[0, 0]
    boxes = placed_boxes(target, content[0], Placing(*(column[0] for column in placing)), canvas)["boxes"]
    assert len(boxes) == 2
    inside = torch.zeros(canvas, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes.tolist():
        inside[round(y0) : round(y1), round(x0) : round(x1)] = True
    bright = moved > 127
    assert (bright & inside).sum() / (bright | inside).sum() > 0.85  # edges fall between pixels


def test_no_augmentation_changes_nothing(split: CocoSplit) -> None:
    scenes = Scenes(split.chosen([0, 1]), (32, 64), (0.5,) * 3, (0.25,) * 3, CPU)
    plain = Augmentation(flip=False)
    images, targets = scenes.batch(torch.tensor([1, 0]), plain, generator_for("augmentation", 0, 0, CPU))
    assert torch.equal(images, scenes.normalised(scenes.pixels([1, 0])))
    scale = letterbox_scale((30, 20), (32, 64))
    assert torch.allclose(targets[0]["boxes"], torch.tensor(split.scenes[1].boxes) * scale)
    assert targets[1]["labels"].tolist() == [1, 0]


def test_batches_are_a_function_of_seed_and_step(split: CocoSplit) -> None:
    scenes = Scenes(split.chosen([0, 1]), (32, 64), (0.5,) * 3, (0.25,) * 3, CPU)
    lazy = Scenes(split.chosen([0, 1]), (32, 64), (0.5,) * 3, (0.25,) * 3, CPU, most_bytes=0)
    assert lazy.images is None
    split = repeated(split.chosen([0, 1]), 2)
    twice = Scenes(split, (32, 64), (0.5,) * 3, (0.25,) * 3, CPU, most_bytes=2 * 3 * 32 * 64)
    assert torch.equal(twice.pixels([3, 2]), scenes.pixels([1, 0]))
    assert (len([] if twice.images is None else twice.images), twice.num_images) == (2, 4), "decoded and kept once"
    wanted = Augmentation(scales=(0.5, 2.0))
    batches = [
        scenes_.batch(torch.tensor([0, 1]), wanted, generator_for("augmentation", 0, step, CPU))
        for scenes_, step in ((scenes, 4), (lazy, 4), (scenes, 5))
    ]
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1][0]["boxes"], batches[1][1][0]["boxes"])
    assert not torch.equal(batches[0][0], batches[2][0])


def test_placing_draws_within_its_bounds_and_crops_only_what_is_too_large() -> None:
    content = torch.tensor([[48.0, 20.0]]).repeat(500, 1)
    placing = random_placing(content, (32, 48), Augmentation(scales=(0.5, 2.0)), torch.Generator().manual_seed(1))
    assert 0.5 <= float(placing.factor.min()) < 0.55
    assert 1.9 < float(placing.factor.max()) <= 2.0
    assert 0.4 < placing.mirrored.float().mean() < 0.6
    excess = (content * placing.factor[:, None] - torch.tensor([48.0, 32.0])).clamp_min(0)
    assert bool((placing.left <= excess[:, 0]).all())
    assert bool((placing.top <= excess[:, 1]).all())
    assert float(placing.left.max()) > 40
    still = random_placing(content, (32, 48), Augmentation(flip=False), torch.Generator().manual_seed(1))
    assert not still.mirrored.any()
    assert bool((still.factor == 1).all())


def test_boxes_that_are_mostly_cut_away_are_not_taught() -> None:
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 20.0, 10.0], [14.0, 0.0, 20.0, 10.0], [6.0, 0.0, 10.0, 10.0]]),
        "labels": torch.tensor([0, 1, 2]),
    }
    moved = Placing(torch.tensor(False), torch.tensor(1.0), torch.tensor(8.0), torch.tensor(0.0))
    kept = placed_boxes(target, torch.tensor([20.0, 10.0]), moved, (10, 20))
    assert kept["labels"].tolist() == [0, 1, 2]
    assert kept["boxes"].tolist() == [[0, 0, 12, 10], [6, 0, 12, 10], [0, 0, 2, 10]]
    further = moved._replace(left=torch.tensor(9.1))
    assert placed_boxes(target, torch.tensor([20.0, 10.0]), further, (10, 20))["labels"].tolist() == [0, 1]
