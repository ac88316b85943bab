import hashlib
import io
import itertools
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afpkd.data import DATASETS, cifar100
from afpkd.data.batches import (
    Draws,
    epoch_order,
    generator_for,
    pixels_from_split,
    random_crop_and_flip,
    random_view,
)
from afpkd.data.dataset import Dataset, DatasetSpec, Split, data_root, hold_out, why_unfit
from afpkd.errors import UserError
from export.bundle import preprocess

CPU = torch.device("cpu")


def _numbered(num: int) -> Split:
    images = np.arange(num, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    return Split(images, np.arange(num))


def test_fashion_mnist_5k_is_what_its_spec_says(tmp_path: Path) -> None:
    spec = DATASETS["fashion_mnist_5k"]
    data = spec.load(tmp_path)
    assert data.train.images.shape == (spec.num_train, spec.in_channels, *spec.image_size)
    assert np.bincount(data.train.labels).tolist() == [400] * 10
    assert np.bincount(data.test.labels).tolist() == [100] * 10
    assert len(data.label_names) == spec.num_classes
    assert data.label_names[9] == "Ankle boot"


def test_cifar100_reads_the_binary_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / cifar100.FOLDER
    folder.mkdir()
    monkeypatch.setattr(cifar100, "_NUM_RECORDS", {"train": 5, "test": 3})
    records = {name: rng.integers(0, 100, (n, 3074), dtype=np.uint8) for name, n in (("train", 5), ("test", 3))}
    for name, rows in records.items():
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    (folder / "fine_label_names.txt").write_text("apple\nbear\n")
    data = DATASETS["cifar100"].load(tmp_path)
    assert data.train.labels.tolist() == records["train"][:, 1].tolist()  # byte 1: the fine label
    assert data.test.images[2, 1, 0, 5] == records["test"][2, 2 + 1024 + 5]  # planes R, G, B, row-major
    assert data.label_names == ["apple", "bear"]


def test_cifar100_is_downloaded_checked_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As published: every file in a folder of its own."""
    files = {"train.bin": bytes(3074 * 5), "test.bin": bytes(3074 * 3), "fine_label_names.txt": b"apple\nbee\n"}
    published = tmp_path / "published.tar.gz"
    with tarfile.open(published, "w:gz") as tar:
        folder = tarfile.TarInfo(f"{cifar100.FOLDER}/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{cifar100.FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar100, "_NUM_RECORDS", {"train": 5, "test": 3})
    monkeypatch.setattr(cifar100, "URL", published.as_uri())
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(UserError, match="is not the official"):
        DATASETS["cifar100"].load(root)
    monkeypatch.setattr(cifar100, "MD5", hashlib.md5(published.read_bytes(), usedforsecurity=False).hexdigest())
    data = DATASETS["cifar100"].load(root)
    assert (len(data.train.labels), len(data.test.labels), data.label_names) == (5, 3, ["apple", "bee"])
    assert {path.name: path.read_bytes() for path in (root / cifar100.FOLDER).iterdir()} == files


def test_a_truncated_cifar100_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / cifar100.FOLDER
    folder.mkdir()
    for name in ("train.bin", "test.bin", "fine_label_names.txt"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"train\.bin: 1 bytes where 153700000 were expected"):
        DATASETS["cifar100"].load(tmp_path)


def test_offline_without_cifar100_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100, "URL", "http://127.0.0.1:9/cifar-100-binary.tar.gz")  # the discard port: refused
    with pytest.raises(UserError, match="set AFPKD_DATA"):
        DATASETS["cifar100"].load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"not it")
    with pytest.raises(UserError, match="is not the official"):
        DATASETS["cifar100"].load(tmp_path)


GOOD = Split(np.zeros((5, 1, 4, 6), np.uint8), np.array([0, 1, 2, 1, 0]))
OF_THREE = DatasetSpec(3, 1, (4, 6), 5, load=lambda root: Dataset(GOOD, GOOD, ["a", "b", "c"]))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"label_names": ["a", "b"]}, "it names 2 classes, and says it has 3"),
        ({"train": GOOD._replace(images=np.zeros((5, 1, 4, 6), np.float32))}, "train: images are float32"),
        ({"test": GOOD._replace(images=np.zeros((5, 4, 6, 1), np.uint8))}, r"test: .* uint8 \(5, 1, 4, 6\) are wanted"),
        ({"heldout": GOOD._replace(images=GOOD.images[:4])}, r"held-out: images are uint8 \(4, "),
        ({"train": GOOD._replace(labels=GOOD.labels.astype(np.int32))}, "train: labels are int32"),
        ({"train": GOOD._replace(labels=GOOD.labels + 1)}, "train: labels reach from 1 to 3, and classes from 0 to 2"),
        ({"train": GOOD._replace(labels=GOOD.labels - 1)}, "train: labels reach from -1 to 1"),
    ],
)
def test_a_data_set_that_is_not_what_it_says_is_told_what_is_not(changed: dict[str, Any], told: str) -> None:
    """Float images would train on inputs of nearly nothing without a word; the others would end deep in torch."""
    found = why_unfit(OF_THREE.load(Path())._replace(**changed), OF_THREE)
    assert re.match(told, found) if told else found == ""


def test_held_out_split_is_seeded_and_disjoint() -> None:
    train = _numbered(50)
    rest, heldout = hold_out(train, 10, seed=3)
    assert sorted([*rest.labels, *heldout.labels]) == list(range(50))
    assert (rest.images[:, 0, 0, 0] == rest.labels).all()
    assert hold_out(train, 10, seed=3)[1].labels.tolist() == heldout.labels.tolist()
    assert hold_out(train, 10, seed=4)[1].labels.tolist() != heldout.labels.tolist()


def test_a_sample_is_of_all_classes_where_images_lie_class_by_class() -> None:
    labels = np.repeat(np.arange(10), 6)
    split = Split(_numbered(60).images, labels)
    pixels = pixels_from_split(split, (0.5,), (0.5,), CPU)
    assert sorted(pixels.sample(20)[:, 0, 0, 0].tolist()) == list(range(0, 60, 3))
    assert sorted(pixels.sample(7)[:, 0, 0, 0].tolist()) == [0, 8, 17, 25, 34, 42, 51]
    found = pixels.sample(500)[:, 0, 0, 0].tolist()
    assert sorted(found) == list(range(60))
    assert torch.equal(pixels.sample(500), pixels.sample(500))
    neighbours = [pixels.labels[a] == pixels.labels[b] for a, b in itertools.pairwise(found)]
    assert sum(neighbours) < 0.6 * len(neighbours), "images would be swapped with those of their own class"
    labels[[0, 59]] = labels[[59, 0]]
    mixed = pixels_from_split(Split(split.images, labels), (0.5,), (0.5,), CPU)
    assert torch.equal(mixed.sample(20), mixed.images[:20])


@pytest.mark.parametrize(("name", "num_heldout"), [("fashion_mnist_5k", 400), ("cifar100", 5000)])
def test_a_sample_of_the_shipped_recipes_data_is_its_first_images(name: str, num_heldout: int) -> None:
    if name == "cifar100" and not (data_root() / cifar100.FOLDER / "train.bin").is_file():
        pytest.skip(f"AFPKD_DATA holds no {cifar100.FOLDER}/")
    train = DATASETS[name].load(data_root()).train
    for split in hold_out(train, num_heldout, seed=0):
        few = Split(split.images[:1000], split.labels[:1000])
        pixels = pixels_from_split(few, (0.5,), (0.5,), CPU)
        assert torch.equal(pixels.sample(500), pixels.images[:500])


def test_normalisation_is_the_formula() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5), dtype=np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    pixels = pixels_from_split(Split(images, np.zeros(4, np.int64)), mean, std, CPU)
    expected = (images.astype(np.float64) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    ours = pixels.normalised(pixels.images)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    rule = {"layout": "NCHW", "scale": 1 / 255, "mean": mean, "std": std}
    np.testing.assert_array_equal(ours, preprocess(images, rule))  # what an exported file is fed


def test_random_crop_equals_cropping_one_by_one() -> None:
    images = torch.randint(0, 256, (64, 3, 8, 7), dtype=torch.uint8)
    crops = random_crop_and_flip(images, padding=2, flip=False, draws=Draws(generator_for("crop", 0, 5, CPU), 64))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    offsets = set()
    for crop, whole in zip(crops, padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(whole[:, y : y + 8, x : x + 7], crop)]
        assert found
        offsets.update(found)
    assert len(offsets) > 15  # of 25


def test_a_mirrored_crop_is_the_mirror_image_of_that_crop() -> None:
    """Cropped first, then mirrored: the draws are those of the crop alone, and of the flip after it."""
    images = torch.randint(0, 256, (64, 3, 8, 7), dtype=torch.uint8)
    both, crops = (
        random_crop_and_flip(images, padding=2, flip=flip, draws=Draws(generator_for("crop", 0, 5, CPU), 64))
        for flip in (True, False)
    )
    mirrored = [torch.equal(one, crop.flip(-1)) for one, crop in zip(both, crops, strict=True)]
    kept = [torch.equal(one, crop) for one, crop in zip(both, crops, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_flip_mirrors_about_half_and_nothing_else() -> None:
    images = torch.randint(0, 256, (400, 1, 3, 4), dtype=torch.uint8)
    flipped = random_crop_and_flip(images, padding=0, flip=True, draws=Draws(generator_for("flip", 0, 1, CPU), 400))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (flipped == images).flatten(1).all(1)).all())
    assert 150 < int(mirrored.sum()) < 250


def test_order_and_augmentation_are_functions_of_seed_and_step() -> None:
    assert torch.equal(epoch_order(100, 1, 2), epoch_order(100, 1, 2))
    assert not torch.equal(epoch_order(100, 1, 2), epoch_order(100, 1, 3))
    assert not torch.equal(epoch_order(100, 1, 2), epoch_order(100, 2, 2))
    assert epoch_order(100, 1, 2).sort().values.tolist() == list(range(100))


def _view(images: Tensor, **options: float) -> Tensor:
    draws = Draws(torch.Generator().manual_seed(3), len(images))
    area, rotation = options.get("area", 1.0), options.get("rotation", 0.0)
    return random_view(images, least_area=area, rotation=rotation, draws=draws)


def test_a_view_of_the_whole_is_the_image() -> None:
    images = torch.randint(0, 256, (5, 3, 12, 20), dtype=torch.uint8)
    assert torch.equal(_view(images), images)


def test_a_part_of_a_ramp_is_a_ramp_of_part_of_its_range() -> None:
    """A ramp along an axis shows where a part lies and how large it is: area and proportions are as promised."""
    height, width = 64, 96
    y, x = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
    images = torch.stack([x, y]).round().to(torch.uint8).expand(400, 2, height, width)
    seen = _view(images, area=0.25).float() / 255
    inner = seen[:, :, 4:-4, 4:-4]  # the border may be black
    across = (inner[:, 0, 0, -1] - inner[:, 0, 0, 0]) * (width - 1) / (width - 9)
    down = (inner[:, 1, -1, 0] - inner[:, 1, 0, 0]) * (height - 1) / (height - 9)
    assert float((inner[:, 0] - inner[:, 0, :1]).abs().max()) < 0.02  # straight: nothing is turned
    area = across * down
    assert 0.2 < float(area.min()) < 0.35
    assert float(area.max()) <= 1.02
    assert 0.5 < float(area.mean()) < 0.65
    ratio = across / down
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < 1.43
    centres = inner[:, 0].mean(dim=(1, 2))
    assert float(centres.min()) < 0.35
    assert float(centres.max()) > 0.65


@pytest.mark.parametrize("least", [0.35, 0.8, 0.95])
def test_a_part_has_at_least_the_area_that_was_asked_for(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    grid = F.affine_grid

    def noted(theta: Tensor, size: list[int], align_corners: bool) -> Tensor:
        seen.append(theta)
        return grid(theta, size, align_corners=align_corners)

    monkeypatch.setattr(F, "affine_grid", noted)
    _view(torch.zeros(2000, 1, 8, 12, dtype=torch.uint8), area=least)
    across, down = seen[0][:, 0, 0], seen[0][:, 1, 1]
    assert float((across * down).min()) == pytest.approx(least, abs=2e-3)
    assert float((across * down).mean()) == pytest.approx((1 + least) / 2, abs=0.02)
    assert float(torch.maximum(across, down).max()) <= 1


def test_a_turned_image_keeps_its_shapes() -> None:
    """A disc stays a disc in an image that is not square, and a bar turns by at most the angle."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(80.0), indexing="ij")
    disc = ((x - 39.5) ** 2 + (y - 19.5) ** 2 < 12**2) * 255
    bar = ((y - 19.5).abs() < 2) * 255
    images = torch.stack([disc, bar]).to(torch.uint8).expand(200, 2, 40, 80)
    seen = _view(images, rotation=20.0).float()
    assert float((seen[:, 0] - disc).abs().mean()) < 4  # aliasing of the edge alone
    left, right = seen[:, 1, :, 20], seen[:, 1, :, 59]
    slope = ((right * y[:, :1].T).sum(1) / right.sum(1) - (left * y[:, :1].T).sum(1) / left.sum(1)) / 39
    angles = torch.rad2deg(torch.atan(slope))
    assert float(angles.max()) < 20.5
    assert float(angles.max()) > 15
    assert float(angles.min()) < -15


def test_each_image_has_a_view_of_its_own_that_a_seed_repeats() -> None:
    images = torch.arange(256).view(16, 16).expand(8, 1, 16, 16).to(torch.uint8)
    first = _view(images, area=0.3, rotation=15.0)
    assert torch.equal(first, _view(images, area=0.3, rotation=15.0))
    assert len({image.numpy().tobytes() for image in first}) == 8
