"""Tiny-ImageNet in its official layout: a tiny copy written by hand, and the real one where it is there."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afpkd.data import DATASETS
from afpkd.data.dataset import Dataset, data_root
from afpkd.errors import UserError

WNIDS = ["n02", "n01", "n03"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "tiny-imagenet-200"
    folder.mkdir()
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tcrane\nn03\tcrane\nn99\tother\n")
    rows = []
    for number, wnid in enumerate(sorted(WNIDS)):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
        for index in range(2):
            Image.new("L", (64, 64), 40 * number + index).save(images / f"{wnid}_{index}.JPEG", quality=95)
        rows.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62")
    (folder / "val" / "images").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (40 * number,) * 3).save(folder / "val" / "images" / f"val_{number}.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(reversed(rows)) + "\n")
    return tmp_path


def _load(root: Path) -> Dataset:
    return DATASETS["tiny_imagenet"].load(root)


def test_labels_are_the_sorted_wnids_and_val_is_labelled_by_its_file(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (root / "tiny-imagenet-200").rglob("*")}
    data = _load(root)
    assert data.train.images.shape == (6, 3, 64, 64)  # grey ones too
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.labels.tolist() == [2, 1, 0]
    np.testing.assert_allclose(data.test.images[:, 0, 0, 0], 40 * data.test.labels, atol=2)
    np.testing.assert_allclose(data.train.images[:, 0, 0, 0], 40 * data.train.labels, atol=3)
    assert data.label_names == ["goldfish", "n02", "n03"]  # two classes share a word
    assert {path: path.stat().st_mtime_ns for path in (root / "tiny-imagenet-200").rglob("*")} == before


@pytest.mark.parametrize(
    ("line", "said"),
    [("val_0.JPEG\tn77\t0", "names no class"), ("val_9.JPEG\tn01\t0", "names no class of wnids.txt or no image")],
)
def test_an_annotation_that_fits_nothing_is_named(line: str, said: str, root: Path) -> None:
    file = root / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=rf"val_annotations.txt:4: .*{said}"):
        _load(root)


def test_what_is_missing_is_said(root: Path) -> None:
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"val_annotations.txt: No such file"):
        _load(root)
    for path in (root / "tiny-imagenet-200" / "train" / "n01" / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"n01/images: no images"):
        _load(root)
    with pytest.raises(UserError, match=r"Tiny-ImageNet is not in .*: unpack http"):
        _load(root / "elsewhere")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wnids.txt", b" \n\n", "is empty"),
        ("wnids.txt", b"caf\xe9\n", "can't decode"),
        ("words.txt", None, "No such file"),
        ("words.txt", b"", "is empty"),
        ("words.txt", b"n01\tcaf\xe9\n", "can't decode"),
        ("words.txt", b"\nn01 fish\n", ":2: 'n01 fish' has no tab"),
        ("val/val_annotations.txt", b"", "is empty"),
        ("val/val_annotations.txt", b"val_0.JPEG\tcaf\xe9\n", "can't decode"),
        ("val/val_annotations.txt", b"val_0.JPEG n01\n", ":1: "),
    ],
)
def test_a_file_of_names_that_cannot_be_read_is_one_line(
    name: str, content: bytes | None, said: str, root: Path
) -> None:
    path = root / "tiny-imagenet-200" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}.*{said}.*: unpack http.* anew") as caught:
        _load(root)
    assert caught.value.code == "E_DATA_BROKEN"


@pytest.mark.skipif(not (data_root() / "tiny-imagenet-200").exists(), reason="Tiny-ImageNet is not here")
@pytest.mark.slow
def test_the_real_one_is_what_it_is_known_as() -> None:
    data = _load(data_root())
    assert (len(data.label_names), len(data.test.labels)) == (200, 10_000)
    assert np.bincount(data.test.labels).tolist() == [50] * 200
    num_train = np.bincount(data.train.labels)
    assert num_train.min() == num_train.max()
    assert data.label_names[:2] == ["goldfish", "European fire salamander"]
