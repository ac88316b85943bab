"""An image file before `predict` is what it was in training: by Pillow to the bit, by OpenCV nearly."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afpkd.data.coco import Scene, read_canvas
from afpkd.data.folder import FORMATS, read_image
from deploy.agent import images
from deploy.agent.errors import AgentError
from deploy.agent.images import read_images, read_letterboxed

SHAPES = [(3, 24, 24), (1, 24, 24), (3, 20, 40), (3, 97, 131), (3, 200, 160)]


def _scene(rows: int, columns: int) -> np.ndarray:
    """Smooth colours with a bright corner: wrong parts, turns and channels all show."""
    y, x = np.mgrid[0:rows, 0:columns]
    red, green = 255 * x / columns, 255 * y / rows
    pixels = np.stack([red, green, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)], axis=2)
    pixels[: rows // 5, : columns // 4] = 255
    return pixels.astype(np.uint8)


def _turned(pixels: np.ndarray, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


def _photo(kind: str, folder: Path) -> Path:
    path = folder / ("photo.jpg" if kind == "turned" else "photo.png")
    pixels = _scene(97, 131)
    if kind == "turned":
        _turned(pixels, path)
    elif kind == "16 bits":
        Image.fromarray(pixels[:, :, 2].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(kind).save(path)
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "P", "16 bits", "turned"])
def test_a_photo_is_what_it_was_in_training(kind: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    path = _photo(kind, tmp_path)
    (ours,) = read_images(str(path), shape)
    assert np.array_equal(ours, read_image(path, size=shape[1:], channels=shape[0]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "16 bits", "turned"])
def test_opencv_reads_it_nearly_so(
    kind: str, shape: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _photo(kind, tmp_path)
    wanted = read_image(path, size=shape[1:], channels=shape[0]).astype(int)
    monkeypatch.setitem(sys.modules, "PIL", None)
    (ours,) = read_images(str(path), shape)
    assert np.abs(ours - wanted).mean() < 2


@pytest.mark.parametrize("library", ["PIL", "cv2"])
@pytest.mark.parametrize("canvas", [(64, 96), (50, 60), (200, 500)])
def test_a_detector_sees_pixels_as_stored(
    library: str, canvas: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    _turned(_scene(97, 131), path)
    boxes, labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    scene = Scene(1, path, (97, 131), boxes, labels, areas=np.zeros(0), crowds=boxes, crowd_labels=labels)
    wanted, scale = read_canvas(scene, canvas)
    if library == "cv2":
        monkeypatch.setitem(sys.modules, "PIL", None)
    (ours,) = read_letterboxed(str(path), (3, *canvas))
    assert (ours.size, ours.scale) == ((97, 131), scale)
    off = np.abs(ours.pixels.astype(int) - wanted).mean()
    assert off == 0 if library == "PIL" else off < 2


@pytest.mark.parametrize("kind", ["RGBA", "L", "P", "16 bits"])
def test_a_scene_of_any_kind_is_what_it_was_in_training(kind: str, tmp_path: Path) -> None:
    boxes, labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    path = _photo(kind, tmp_path)
    scene = Scene(1, path, (97, 131), boxes, labels, areas=np.zeros(0), crowds=boxes, crowd_labels=labels)
    wanted, _ = read_canvas(scene, (64, 96))
    (ours,) = read_letterboxed(str(path), (3, 64, 96))
    assert np.array_equal(ours.pixels, wanted)
    assert (wanted == 255).mean() < 0.2


@pytest.mark.parametrize("library", ["PIL", "cv2"])
@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_grey_of_32_bits_is_refused_as_in_training(
    kind: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a PGM, too, Pillow makes 32 bits: those of 16 in the file, which are read."""
    Image.fromarray(np.full((9, 9), 0.5 if kind == "float32" else 200, kind)).save(tmp_path / "x.tif")
    (tmp_path / "x.pgm").write_bytes(b"P5 9 9 65535\n" + np.full(81, 40_000, ">u2").tobytes())
    for channels in (1, 3):
        with pytest.raises(ValueError, match="grey of 32 bits"):
            read_image(tmp_path / "x.tif", size=(9, 9), channels=channels)
    if library == "cv2":
        monkeypatch.setitem(sys.modules, "PIL", None)
    for channels in (1, 3):
        shape = (channels, 9, 9)
        for read in (read_images, read_letterboxed):
            with pytest.raises(AgentError, match=r"x\.tif: (grey of 32 bits|not an image that OpenCV reads)"):
                read(str(tmp_path / "x.tif"), shape)
        assert (read_images(str(tmp_path / "x.pgm"), shape) == 40_000 >> 8).all()


def test_a_file_that_pillow_would_give_to_another_program_is_not_read(tmp_path: Path) -> None:
    """As in training."""
    assert images.FORMATS == FORMATS
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(AgentError, match=r"script\.png: a file of EPS, which is not read"):
        read_images(str(tmp_path / "script.png"), (3, 8, 8))
    with pytest.raises(ValueError, match="a file of EPS, which is not read"):
        read_image(tmp_path / "script.png", size=(8, 8), channels=3)


def test_without_a_decoder_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _photo("RGB", tmp_path)
    for name in ("PIL", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(AgentError, match="apt install python3-pil") as caught:
        read_images(str(path), (3, 8, 8))
    assert caught.value.code == "E_NO_DECODER"
