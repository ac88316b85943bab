"""Images in folders against pixels that were written by hand, and against torchvision's ImageFolder."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from afpkd.data.folder import read_folder, read_image
from afpkd.errors import UserError
from tests.scenes import CANVAS, as_bombs


def _tree(root: Path, num: int = 3, size: tuple[int, int] = (8, 8)) -> Path:
    generator = np.random.default_rng(0)
    for name in ("zebra", "ant", "Bee"):
        (root / name).mkdir(parents=True)
        for number in range(num):
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_images_of_the_right_size_keep_their_pixels_in_image_folders_order(tmp_path: Path) -> None:
    (_tree(tmp_path) / ".hidden").mkdir()
    (tmp_path / "ant" / "deeper").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "ant" / "deeper" / "last.png")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden" / "x.png").write_bytes(b"")
    found = read_folder(tmp_path, size=(8, 8), channels=3)
    (tmp_path / ".hidden" / "x.png").unlink()
    (tmp_path / ".hidden").rmdir()
    reference = ImageFolder(str(tmp_path))
    assert found.label_names == reference.classes == ["Bee", "ant", "zebra"]
    assert found.split.labels.tolist() == reference.targets
    for ours, (theirs, _) in zip(found.split.images, reference, strict=True):
        assert np.array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))
    assert found.unreadable == []
    assert found.split.images.dtype == np.uint8
    assert found.split.labels.dtype == np.int64


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_grey_or_colour(mode: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    image = Image.new("I;16B", (4, 4), 40_000) if mode == "I;16B" else Image.new("L", (4, 4), 255).convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    image.save(path)
    pixels = read_image(path, size=(4, 4), channels=channels)
    assert pixels.shape == (channels, 4, 4)
    assert pixels.min() == pixels.max() == (40_000 >> 8 if mode.startswith("I") else 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_32_bits_are_16_in_a_pgm_and_of_no_known_range_elsewhere(channels: int, tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5 4 4 65535\n" + np.full(16, 40_000, ">u2").tobytes())
    with Image.open(tmp_path / "x.pgm") as opened:
        assert opened.mode == "I"
    assert (read_image(tmp_path / "x.pgm", size=(4, 4), channels=channels) == 40_000 >> 8).all()
    for pixels in (np.full((4, 4), 200, np.int32), np.full((4, 4), 0.5, np.float32)):
        Image.fromarray(pixels).save(tmp_path / "x.tiff")
        with pytest.raises(ValueError, match=r"grey of 32 bits, .*: save it with 8 or 16 bits"):
            read_image(tmp_path / "x.tiff", size=(4, 4), channels=channels)


JPEG = ["JPG", "jfif", "jpe", "jpeg"]
NAMES = [*JPEG, *["avif", "bmp", "gif", "jp2", "pbm", "pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"]]


def test_every_format_of_pixels_is_read_by_its_name(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        image = Image.new("1" if name == "pbm" else "L" if name == "pgm" else "RGB", (8, 8), "white")
        kind = {"jfif": "JPEG", "jpe": "JPEG", "pnm": "PPM"}.get(name)
        image.save(tmp_path / name / f"x.{name}", kind)
    found = read_folder(tmp_path, size=(8, 8), channels=3)
    assert (found.label_names, found.unreadable, found.others) == (sorted(NAMES), [], [])
    assert found.split.images.min() >= 254


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path) -> None:
    _tree(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    ant = tmp_path / "data" / "ant"
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "x.png")
    for name in ("1.heic", "2.HEIC", "notes", ".DS_Store"):
        (ant / name).write_text("no pixels")
    (ant / "linked").symlink_to(tmp_path / "elsewhere")
    (ant / "9.png").symlink_to(tmp_path / "gone.png")
    (ant / "8.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "data" / "zebra" / "deep").mkdir()
    (tmp_path / "data" / "zebra" / "deep" / "a\x1b.svg").write_text("<svg/>")
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "stray.png")
    found = read_folder(tmp_path / "data", size=(8, 8), channels=3)
    assert len(found.split.labels) == 10  # a linked file is one
    assert found.others == [
        r"left out, not read: 2 .heic (such as ant/1.heic), 1 .svg (such as zebra/deep/a\x1b.svg), "
        "1 link to nothing (such as ant/9.png), 1 linked folder (such as ant/linked), "
        "1 without a suffix (such as ant/notes)",
        "left out, in no class: 1 images (such as stray.png)",
    ]


@pytest.mark.parametrize("folder", [".thumbnails", ".ipynb_checkpoints/deeper", "deeper/.trash"])
def test_what_lies_in_a_hidden_folder_of_a_class_is_no_photo(folder: str, tmp_path: Path) -> None:
    hidden = _tree(tmp_path / "photos") / "ant" / folder
    hidden.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(hidden / "x.png")
    (hidden / "notes.txt").write_text("no image")
    found = read_folder(tmp_path / "photos", size=(8, 8), channels=3)
    assert (len(found.ids), found.others) == (9, [])
    outside = read_folder(_tree(tmp_path / ".mine" / "photos"), size=(8, 8), channels=3)
    assert len(outside.ids) == 9, "above the classes a dot says nothing"


def test_a_class_of_nothing_that_is_read_says_what_it_has(tmp_path: Path) -> None:
    (_tree(tmp_path) / "bat").mkdir()
    (tmp_path / "bat" / "1.heic").write_text("pixels of a phone")
    with pytest.raises(UserError, match=r"bat: no image in this class \(\.avif, .* not read: 1 \.heic \(such as bat/1"):
        read_folder(tmp_path, size=(8, 8), channels=3)


def test_a_program_in_an_images_clothes_is_not_run(tmp_path: Path) -> None:
    """Pillow knows PostScript, whatever its file is called, and gives it to Ghostscript."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.format == "EPS"
    with pytest.raises(ValueError, match="a file of EPS, which is not read"):
        read_image(tmp_path / "x.png", size=(8, 8), channels=3)


@pytest.mark.parametrize("name", ["two\nlines", "two\u2028lines", "end\r", "caf\udce9"])
def test_a_class_whose_name_is_no_line_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    (_tree(tmp_path) / name).mkdir()
    (tmp_path / name / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"the class .*: a name is one line of UTF-8 text: rename it") as caught:
        read_folder(tmp_path, size=(8, 8), channels=3)
    str(caught.value).encode()


def test_a_broken_file_of_any_name_can_be_told(tmp_path: Path) -> None:
    _tree(tmp_path, num=40)
    (tmp_path / "ant" / "caf\udce9\n.png").write_bytes(b"no image")
    (told,) = read_folder(tmp_path, size=(8, 8), channels=3).unreadable
    assert told.isprintable()
    assert told.startswith(r"ant/caf\udce9\n.png: ")


def test_another_size_is_scaled_and_cropped_at_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 200  # the centre square
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert (read_image(tmp_path / "x.png", size=(16, 16), channels=3) == 200).all()
    small = read_image(tmp_path / "x.png", size=(4, 8), channels=3)
    assert small.shape == (3, 4, 8)
    row = small[0, 0].tolist()  # the centre is 32 wide, scaled by 4: dark, a quarter each side, and bright between
    assert (row[0], row[7], row[3:5]) == (0, 0, [200, 200])


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, :4] = 255  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    turned = read_image(tmp_path / "x.png", size=(8, 8), channels=3)
    assert (turned[:, :4] == 255).all()
    assert (turned[:, 4:] == 0).all()


def test_a_photo_of_16_bits_is_turned_too(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), dtype=np.uint16)
    pixels[:, :4] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    turned = read_image(tmp_path / "x.png", size=(8, 8), channels=1)
    assert turned[0, :4].tolist() == 4 * [8 * [255]]
    assert not turned[0, 4:].any()


def test_a_photo_whose_camera_wrote_nonsense_is_named(tmp_path: Path) -> None:
    """Orientation 6, and a name of software that is a fraction: Pillow's AttributeError."""
    _tree(tmp_path, num=40)
    entries = struct.pack("<HHI", 0x112, 3, 1) + b"\x06\0\0\0" + struct.pack("<HHI", 0x131, 5, 1) + b"\x06\0\0\0"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + bytes(4)
    Image.new("RGB", (8, 8)).save(tmp_path / "ant" / "odd.jpg", exif=exif)
    (told,) = read_folder(tmp_path, size=(8, 8), channels=3).unreadable
    assert told.startswith("ant/odd.jpg: ")


def test_a_few_broken_files_are_named_and_many_are_refused(tmp_path: Path) -> None:
    _tree(tmp_path, num=40)
    broken = tmp_path / "ant" / "7.png"
    broken.write_bytes(broken.read_bytes()[:80])
    found = read_folder(tmp_path, size=(8, 8), channels=3)
    assert len(found.split.labels) == 119
    assert len(found.unreadable) == 1
    assert found.unreadable[0].startswith("ant/7.png: ")
    (tmp_path / "zebra" / "1.png").write_text("not an image")
    with pytest.raises(UserError, match=r"2 of 120 images cannot be read, the first: ant/7\.png"):
        read_folder(tmp_path, size=(8, 8), channels=3)


def test_a_decompression_bomb_is_not_decoded(tmp_path: Path) -> None:
    _tree(tmp_path, size=CANVAS)
    with as_bombs(), pytest.raises(UserError, match=r"9 of 9 images cannot be read, .*Bee/0\.png: Image size .* bomb"):
        read_folder(tmp_path, size=(8, 8), channels=3)


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "holds no folder"),
        (lambda root: (root / "ant").mkdir(parents=True), "no image in this class"),
    ],
)
def test_a_folder_without_classes_or_images_is_refused(make: object, cause: str, tmp_path: Path) -> None:
    make(tmp_path / "data")  # type: ignore[operator]
    with pytest.raises(UserError, match=cause):
        read_folder(tmp_path / "data", size=(8, 8), channels=3)


def test_some_images_are_drawn_without_reading_the_others(tmp_path: Path) -> None:
    _tree(tmp_path, num=4)
    whole = read_folder(tmp_path, size=(8, 8), channels=3)
    some = read_folder(tmp_path, size=(8, 8), channels=3, num=5, seed=1)
    assert len(set(some.ids)) == 5
    assert some.ids == sorted(some.ids)
    assert np.array_equal(some.split.images, whole.split.images[some.ids])
    assert np.array_equal(some.split.labels, whole.split.labels[some.ids])
    assert read_folder(tmp_path, size=(8, 8), channels=3, num=5, seed=2).ids != some.ids
    assert read_folder(tmp_path, size=(8, 8), channels=3, num=99).ids == whole.ids == list(range(12))
    for index, path in enumerate(sorted(tmp_path.rglob("*.png"), key=lambda path: path.relative_to(tmp_path).parts)):
        if index not in some.ids:
            path.write_text("broken")
    assert read_folder(tmp_path, size=(8, 8), channels=3, num=5, seed=1).unreadable == []


def test_for_an_unreadable_image_another_is_drawn(tmp_path: Path) -> None:
    _tree(tmp_path, num=100)
    drawn = read_folder(tmp_path, size=(8, 8), channels=3, num=200, seed=1).ids
    files = sorted(tmp_path.rglob("*.png"), key=lambda path: path.relative_to(tmp_path).parts)
    files[drawn[7]].write_text("broken")
    found = read_folder(tmp_path, size=(8, 8), channels=3, num=200, seed=1)
    assert (len(set(found.ids)), len(found.unreadable)) == (200, 1)
    assert found.ids[:-1] == drawn[:7] + drawn[8:]
    assert found.ids[-1] not in drawn


def test_one_file_in_a_hundred_may_be_broken_and_no_more(tmp_path: Path) -> None:
    _tree(tmp_path, num=33)
    (tmp_path / "ant" / "broken.png").write_bytes(b"no image")
    assert len(read_folder(tmp_path, size=(8, 8), channels=3).unreadable) == 1
    (tmp_path / "zebra" / "0.png").unlink()
    with pytest.raises(UserError, match="1 of 99 images cannot be read"):
        read_folder(tmp_path, size=(8, 8), channels=3)


def test_scaling_is_smooth_and_height_comes_first(tmp_path: Path) -> None:
    edge = np.zeros((2, 4), dtype=np.uint8)
    edge[:, 2:] = 240
    Image.fromarray(edge).save(tmp_path / "edge.png")
    scaled = read_image(tmp_path / "edge.png", size=(4, 8), channels=1)[0]
    assert scaled.shape == (4, 8)
    assert set(scaled[0].tolist()) > {0, 240}, "between two pixels lies what is between them"
    assert read_image(tmp_path / "edge.png", size=(4, 2), channels=1).shape == (1, 4, 2), "a turned size is another one"
