"""Own images as a data set: which image is for what, what is decoded anew, what is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from afpkd.data import decoded
from afpkd.data.dataset import Dataset, channel_statistics
from afpkd.data.image_folder import Layout, folder_content, folder_spec
from afpkd.errors import UserError

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 255 - value)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """10 + 15 + 20 images; the red channel is an image's number, each number once."""
    number = 0
    for name, num in zip(CLASSES, (10, 15, 20), strict=True):
        for index in range(num):
            _image(tmp_path / "photos" / name / f"{index}.png", number)
            number += 1
    return tmp_path / "photos"


def _layout(path: Path, *splits: str | None, seed: int = 0) -> Layout:
    train, val, test = splits or (None, None, None)
    return Layout(path, train, val, test, 0.2, seed)


def _loaded(layout: Layout, channels: int = 3) -> Dataset:
    return folder_spec(layout, image_size=(8, 8), channels=channels).load(Path("unused"))


def _numbers(split: object) -> set[int]:
    return set(split.images[:, 0, 0, 0].tolist())  # type: ignore[attr-defined]


def test_one_folder_is_split_class_by_class_the_same_every_time(photos: Path) -> None:
    data = _loaded(_layout(photos))
    assert np.bincount(data.test.labels).tolist() == [2, 3, 4]
    assert np.bincount(data.train.labels).tolist() == [8, 12, 16]
    assert _numbers(data.train) | _numbers(data.test) == set(range(45))
    assert data.label_names == list(CLASSES)
    assert (data.heldout, data.notes) == (None, ())
    (photos / "ant" / "x.heic").write_text("not read")
    assert _loaded(_layout(photos)).notes == ("left out, not read: 1 .heic (such as ant/x.heic)",)
    _image(photos / "stray.png", 1)
    assert _loaded(_layout(photos)).notes[1:] == ("left out, in no class: 1 images (such as stray.png)",)
    assert _numbers(_loaded(_layout(photos)).test) == _numbers(data.test)
    assert _numbers(_loaded(_layout(photos, seed=1)).test) != _numbers(data.test)
    for image, label in zip(data.test.images[:, 0, 0, 0], data.test.labels, strict=True):
        assert label == (0 if image < 10 else 1 if image < 25 else 2)


def test_splits_in_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for at, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(CLASSES):
            if (split, name) != ("val", "ant"):  # a class may be missing where nothing is learnt
                _image(tmp_path / split / name / "x.png", 10 * at + label)
    data = _loaded(_layout(tmp_path, "train", "val", "test"))
    assert data.heldout is not None
    assert [_numbers(split) for split in (data.train, data.heldout, data.test)] == [{0, 1, 2}, {11, 12}, {20, 21, 22}]
    assert data.heldout.labels.tolist() == [1, 2]
    assert folder_spec(_layout(tmp_path, "train", "val", "test"), image_size=(8, 8), channels=3).num_train == 3
    for split in ("train", "val", "test"):
        (tmp_path / split / "bee" / f"{split}.txt").write_text("not read")
    told = [f"left out, not read: 1 .txt (such as bee/{split}.txt)" for split in ("train", "val", "test")]
    assert list(_loaded(_layout(tmp_path, "train", "val", "test")).notes) == told
    _image(tmp_path / "test" / "zebra" / "x.png", 99)
    with pytest.raises(UserError, match=r"test/zebra: train has no class of this name \(it has: ant, bee, cow\)"):
        _loaded(_layout(tmp_path, "train", "val", "test"))


@pytest.mark.parametrize("place", ["train", "val", "test"])
def test_a_split_that_lies_elsewhere_is_refused(place: str, photos: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    splits = {"train": "train", "val": None, "test": "test", place: str(elsewhere)}
    layout = _layout(photos, splits["train"], splits["val"], splits["test"])
    told = rf"^data\.{place} = '{elsewhere}' does not lie below data\.path = '{photos}': .* name {place} relative to it"
    with pytest.raises(UserError, match=told):
        folder_content(layout)
    with pytest.raises(UserError, match=told):
        folder_spec(layout, image_size=(8, 8), channels=3)


@pytest.mark.parametrize("names", [["bus", "train"], ["test", "train"]])
def test_a_class_called_train_is_a_class(names: list[str], tmp_path: Path) -> None:
    for name in names:
        for index in range(3):
            _image(tmp_path / name / f"{index}.png", 7)
    assert _loaded(_layout(tmp_path)).label_names == names


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("train", "val"), r'\(train, val\) are splits, no classes: set data\.train = "train", data\.test = "val"'),
        (("train", "val", "Test"), 'set data.train = "train", data.val = "val", data.test = "Test"'),
        (("training", "testing", "odd"), 'set data.train = "training", data.test = "testing"'),
        (("train",), "let data.path be the folder in which the classes lie"),
        (("test", "valid"), "let data.path be the folder in which the classes lie"),
    ],
)
def test_folders_of_splits_are_no_classes(folders: tuple[str, ...], told: str, tmp_path: Path) -> None:
    for split in folders:
        for name in CLASSES:
            for index in range(2):
                _image(tmp_path / split / name / f"{index}.png", index)
    with pytest.raises(UserError, match=told):
        folder_content(_layout(tmp_path))


def test_a_split_beside_a_class_is_a_class(tmp_path: Path) -> None:
    for place in ("bus/city", "train/fast"):
        for index in range(2):
            _image(tmp_path / place / f"{index}.png", index)
    assert _loaded(_layout(tmp_path)).label_names == ["bus", "train"]


@pytest.mark.parametrize("split", [None, "photos"])
def test_a_single_class_is_refused(split: str | None, tmp_path: Path) -> None:
    for index in range(3):
        _image(tmp_path / "photos" / "photos" / f"{index}.png", index)
    told = "photos: one folder, 'photos', and so one class, .*: name the folder that holds a folder per class"
    with pytest.raises(UserError, match=told):
        _loaded(_layout(tmp_path if split else tmp_path / "photos", split, None, split))


def test_a_class_of_one_image_is_refused(photos: Path) -> None:
    _image(photos / "dog" / "only.png", 1)
    with pytest.raises(UserError, match="dog: one image: two at least"):
        _loaded(_layout(photos))


def test_images_that_are_also_training_images_are_noted(tmp_path: Path) -> None:
    for name in CLASSES:
        _image(tmp_path / "train" / name / "x.png", 5)
        _image(tmp_path / "test" / name / "x.png", 5 if name == "bee" else 6)
    (note,) = _loaded(_layout(tmp_path, "train", None, "test")).notes
    assert note.startswith("1 of 3 test images are also training images")
    for name in CLASSES:
        _image(tmp_path / "val" / name / "x.png", 6 if name == "cow" else 7)
    notes = _loaded(_layout(tmp_path, "train", "val", "test")).notes
    assert [said.split(":")[0] for said in notes] == [note.split(":")[0], "2 of 3 test images are also val images"]


def test_a_broken_file_is_left_out_and_named_and_no_label_moves(photos: Path) -> None:
    for index in range(60):
        _image(photos / "cow" / f"more{index}.png", 100 + index)
    (photos / "bee" / "3.png").write_bytes((photos / "bee" / "3.png").read_bytes()[:40])
    data = _loaded(_layout(photos))
    assert len(data.notes) == 1
    assert data.notes[0].startswith("left out, unreadable: bee/3.png: ")
    for split in (data.train, data.test):
        for image, label in zip(split.images[:, 0, 0, 0], split.labels, strict=True):
            assert label == (0 if image < 10 else 1 if image < 25 else 2)
    assert 13 not in _numbers(data.train) | _numbers(data.test)
    (photos / "bee" / "4.png").write_text("no image")
    for _ in range(2):  # said again when the images are kept
        with pytest.raises(UserError, match=r"2 of 105 images cannot be read, the first: bee/3\.png"):
            _loaded(_layout(photos))


def test_the_identity_is_the_images_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    before = folder_content(_layout(photos))
    os.utime(photos / "ant" / "0.png", (1, 1))
    (photos / "notes.txt").write_text("no image")
    assert folder_content(_layout(photos)) == before
    moved = photos.rename(tmp_path / "elsewhere")
    assert folder_content(_layout(moved)) == before
    assert folder_content(_layout(moved, seed=1)) != before  # another split
    _image(moved / "ant" / "0.png", 200)
    changed = folder_content(_layout(moved))
    assert changed != before
    (moved / "ant" / "1.png").rename(moved / "ant" / "one.png")
    assert folder_content(_layout(moved)) != changed


def test_images_are_decoded_once_and_again_when_they_change(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = decoded._decode_all

    def counted(*given: Any) -> decoded.Decoded:
        calls.append("again")
        return real(*given)

    monkeypatch.setattr(decoded, "_decode_all", counted)
    first = _loaded(_layout(photos))
    again = _loaded(_layout(photos, seed=3))  # another split of the same files, in another order
    assert (len(calls), first.sha256() == again.sha256()) == (2, False)
    assert _loaded(_layout(photos, seed=3)).sha256() == again.sha256()
    assert len(calls) == 2
    os.utime(photos / "ant" / "0.png", (1, 1))  # touched, not changed
    _loaded(_layout(photos, seed=3))
    assert len(calls) == 2
    assert _loaded(_layout(photos, seed=3), channels=1).train.images.shape[1] == 1
    assert len(calls) == 3
    _image(photos / "ant" / "0.png", 200)
    assert 200 in _numbers(_loaded(_layout(photos, seed=3)).train) | _numbers(_loaded(_layout(photos, seed=3)).test)
    assert len(calls) == 4
    kept = sorted(path.suffix for path in decoded._cache().glob("*-*"))
    assert kept == [
        ".json",
        ".json",
        ".npy",
        ".npy",
    ]  # colour and grey, of the last contents alone


@pytest.mark.parametrize("changed", ["afpkd.data.decoded._DECODER", "PIL.__version__"])
def test_another_decoder_does_not_find_the_pixels_of_the_first(
    changed: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _loaded(_layout(photos)).sha256()
    monkeypatch.setattr(decoded, "try_read_image", lambda *_, **__: np.zeros((3, 8, 8), np.uint8))
    assert _loaded(_layout(photos)).sha256() == before
    monkeypatch.setattr(changed, "another")
    assert not _loaded(_layout(photos)).train.images.any()


def test_a_cache_that_cannot_be_written_changes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _loaded(_layout(photos)).sha256()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _loaded(_layout(photos)).sha256() == expected


LOAD = """
import sys
from pathlib import Path
from afpkd.data.image_folder import Layout, folder_spec
layout = Layout(Path(sys.argv[1]), None, None, None, 0.2, 0)
print(folder_spec(layout, image_size=(8, 8), channels=3).load(Path()).sha256())
"""


def test_stages_that_start_side_by_side_read_the_same(photos: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", LOAD, str(photos)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    said = {process.communicate(timeout=120)[0] for process in running}
    assert said == {_loaded(_layout(photos)).sha256() + "\n"}


def test_channel_statistics_are_those_of_float64() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1500, 2, 3, 5), dtype=np.uint8)
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), atol=1e-6)
