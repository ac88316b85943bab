"""An image file as pixels for a network: `.npy` always, anything else with Pillow or OpenCV, whichever is there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Size = tuple[int, int]  # height and width
    Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What a file may hold, whatever it is called, as in training: Pillow may give others (EPS) to another program."""

_BILINEAR = 2
"""As in every Pillow; the name moved between releases."""


def read_images(path: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Give pixels (uint8, N,C,H,W) of the file, brought to `shape` (C,H,W).

    `.npy`: uint8, of that shape or a stack of it, taken as it is. Other files: one image as a classifier is trained on
    it: turned as its EXIF data say, cropped at the centre to the proportions of `shape`, resized (bilinear).
    AgentError E_IMAGE, or E_NO_DECODER where neither library is there.
    """
    channels, height, width = shape
    if Path(path).suffix == ".npy":
        return _from_npy(path, shape)
    if channels not in (1, 3):
        raise AgentError("E_IMAGE", f"{path}: the network wants {channels} channels: give it a .npy file")
    size = (height, width)
    pixels, _ = _decoded(path, grey=channels == 1, turned=True, part=lambda whole: (_centre(whole, size), size))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)[None]


class Letterboxed(NamedTuple):
    """One image as a detector takes it."""

    pixels: NDArray[np.uint8]
    """C, H, W: its content in the top left corner of a black canvas, its proportions kept."""
    size: Size
    """Height and width of the image itself."""
    scale: float
    """Pixels of the canvas an image pixel."""


def read_letterboxed(path: str, shape: tuple[int, int, int]) -> list[Letterboxed]:
    """Give the images of the file on canvases of `shape` (C,H,W). `.npy`: canvases as they are, uint8.

    EXIF rotation is not applied, as in training: boxes mean the pixels as stored. AgentError E_IMAGE, or E_NO_DECODER
    where neither library is there.
    """
    channels, height, width = shape
    if Path(path).suffix == ".npy":
        return [Letterboxed(pixels, (height, width), 1.0) for pixels in _from_npy(path, shape)]

    def part(whole: Size) -> tuple[Box, Size]:
        scale = _scale(whole, (height, width))
        return (0, 0, whole[1], whole[0]), (max(1, round(whole[0] * scale)), max(1, round(whole[1] * scale)))

    content, whole = _decoded(path, grey=channels == 1, turned=False, part=part)
    canvas = np.zeros(shape, dtype=np.uint8)
    canvas[:, : content.shape[0], : content.shape[1]] = content.reshape(*content.shape[:2], channels).transpose(2, 0, 1)
    return [Letterboxed(canvas, whole, _scale(whole, (height, width)))]


def _scale(whole: Size, canvas: Size) -> float:
    return min(canvas[0] / whole[0], canvas[1] / whole[1])


def _centre(whole: Size, size: Size) -> Box:
    """The largest part of an image of `whole` that has the proportions of `size`, in its middle."""
    (rows, columns), proportion = whole, size[1] / size[0]
    width, height = min(columns, proportion * rows), min(rows, columns / proportion)
    left, top = (columns - width) / 2, (rows - height) / 2
    return left, top, left + width, top + height


def _from_npy(path: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    _require_file(path)
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy evaluates the header: Python's tokenizer has errors of its own
        raise AgentError("E_IMAGE", f"{path}: {error}") from None
    if array.dtype != np.uint8 or array.shape[-3:] != shape or array.ndim not in (3, 4):
        expected = f"uint8 of shape {shape}, or a stack of it"
        raise AgentError("E_IMAGE", f"{path}: {array.dtype} of shape {array.shape}; expected {expected}")
    return array.reshape(-1, *shape)


def _require_file(path: str) -> None:
    if not Path(path).is_file():  # a pipe would be waited for
        raise AgentError("E_IMAGE", f"{path}: no such file")


def _decoded(
    path: str, *, grey: bool, turned: bool, part: Callable[[Size], tuple[Box, Size]]
) -> tuple[NDArray[np.uint8], Size]:
    """(pixels H,W or H,W,3; the image's own size). part: from that size, what is taken and the size it gets.

    turned: as its EXIF data say.
    """
    _require_file(path)
    try:
        import PIL.ImageOps
    except ImportError:
        return _decoded_by_opencv(path, grey=grey, turned=turned, part=part)
    try:
        with PIL.Image.open(path) as opened:
            if opened.format not in FORMATS:
                raise ValueError(f"a file of {opened.format}, which is not read: save it as PNG or JPEG")  # noqa: TRY301  one handler for all
            image = _eight_bits(PIL.ImageOps.exif_transpose(opened) if turned else opened, opened.format)
            image = image.convert("L" if grey else "RGB")
        whole = (image.height, image.width)
        box, size = part(whole)
        resized = image.resize(size[::-1], _BILINEAR, box)
    except Exception as error:  # a decoder may raise anything of a broken file
        raise AgentError("E_IMAGE", f"{path}: {error}") from None
    return np.asarray(resized, dtype=np.uint8), whole


def _eight_bits(image: Any, file_format: str | None) -> Any:
    """16-bit grey scaled to 8 bits, as in training: Pillow's own conversion clips it to white.

    ValueError: 32 bits, whose range nobody knows; as such Pillow also has the 16 bits of a PNG or PGM.
    """
    import PIL.Image

    if image.mode == "F" or (image.mode == "I" and file_format not in ("PNG", "PPM")):
        raise ValueError("grey of 32 bits, whose black and white nobody knows: save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    return PIL.Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def _decoded_by_opencv(
    path: str, *, grey: bool, turned: bool, part: Callable[[Size], tuple[Box, Size]]
) -> tuple[NDArray[np.uint8], Size]:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        hint = "apt install python3-pil (or python3-opencv), or give it .npy files"
        raise AgentError("E_NO_DECODER", f"{path}: neither Pillow nor OpenCV is here: {hint}") from None
    flags = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
    image = cv2.imread(path, flags if turned else flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise AgentError("E_IMAGE", f"{path}: not an image that OpenCV reads")
    whole = (int(image.shape[0]), int(image.shape[1]))
    box, size = part(whole)
    left, top, right, bottom = map(round, box)
    taken = image[top:bottom, left:right]
    shrinks = size[0] < taken.shape[0]  # Pillow averages over what becomes one pixel: OpenCV's INTER_LINEAR does not
    resized = cv2.resize(taken, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    ordered = resized if grey else resized[:, :, ::-1]  # OpenCV has blue first
    return np.ascontiguousarray(ordered, dtype=np.uint8), whole
