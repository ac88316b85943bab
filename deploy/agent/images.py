"""An image file as pixels for a network: `.npy` always, anything else with Pillow or OpenCV, whichever is there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import AgentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BILINEAR = 2
"""As in every Pillow; the name moved between releases."""


def read_images(path: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Give pixels (uint8, N,C,H,W) of the file, brought to `shape` (C,H,W).

    `.npy`: uint8, of that shape or a stack of it, taken as it is. Other files: one image, resized (bilinear) without
    keeping its proportions. AgentError E_IMAGE, or E_NO_DECODER where neither library is there.
    """
    if Path(path).suffix == ".npy":
        return _from_npy(path, shape)
    channels, height, width = shape
    if channels not in (1, 3):
        raise AgentError("E_IMAGE", f"{path}: the network wants {channels} channels: give it a .npy file")
    if not Path(path).is_file():
        raise AgentError("E_IMAGE", f"{path}: no such file")
    pixels = _decoded(path, grey=channels == 1, size=(width, height))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)[None]


class Letterboxed(NamedTuple):
    """One image as a detector takes it."""

    pixels: NDArray[np.uint8]
    """C, H, W: its content in the top left corner of a black canvas, its proportions kept."""
    size: tuple[int, int]
    """Height and width of the image itself."""
    scale: float
    """Pixels of the canvas an image pixel."""


def read_letterboxed(path: str, shape: tuple[int, int, int]) -> list[Letterboxed]:
    """Give the images of the file on canvases of `shape` (C,H,W). `.npy`: canvases as they are, uint8.

    AgentError E_IMAGE, or E_NO_DECODER where neither library is there.
    """
    channels, height, width = shape
    if Path(path).suffix == ".npy":
        return [Letterboxed(pixels, (height, width), 1.0) for pixels in _from_npy(path, shape)]
    if not Path(path).is_file():
        raise AgentError("E_IMAGE", f"{path}: no such file")
    whole = _size_of(path)
    scale = min(height / whole[0], width / whole[1])
    inner = (max(1, round(whole[0] * scale)), max(1, round(whole[1] * scale)))
    content = _decoded(path, grey=channels == 1, size=(inner[1], inner[0])).reshape(*inner, channels)
    canvas = np.zeros(shape, dtype=np.uint8)
    canvas[:, : inner[0], : inner[1]] = content.transpose(2, 0, 1)
    return [Letterboxed(canvas, whole, scale)]


def _size_of(path: str) -> tuple[int, int]:
    """Height and width of an image file."""
    try:
        import PIL.Image
    except ImportError:
        height, width = _opened_by_opencv(path, grey=True).shape[:2]
        return int(height), int(width)
    try:
        with PIL.Image.open(path) as image:
            return int(image.height), int(image.width)
    except (OSError, ValueError) as error:
        raise AgentError("E_IMAGE", f"{path}: {error}") from None


def _from_npy(path: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AgentError("E_IMAGE", f"{path}: {error}") from None
    if array.dtype != np.uint8 or array.shape[-3:] != shape or array.ndim not in (3, 4):
        expected = f"uint8 of shape {shape}, or a stack of it"
        raise AgentError("E_IMAGE", f"{path}: {array.dtype} of shape {array.shape}; expected {expected}")
    return array.reshape(-1, *shape)


def _decoded(path: str, *, grey: bool, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        import PIL.Image
    except ImportError:
        return _decoded_by_opencv(path, grey=grey, size=size)
    try:
        with PIL.Image.open(path) as image:
            resized = image.convert("L" if grey else "RGB").resize(size, _BILINEAR)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # what Pillow raises
        raise AgentError("E_IMAGE", f"{path}: {error}") from None
    return np.asarray(resized, dtype=np.uint8)


def _decoded_by_opencv(path: str, *, grey: bool, size: tuple[int, int]) -> NDArray[np.uint8]:
    image = _opened_by_opencv(path, grey=grey)
    cv2 = importlib.import_module("cv2")
    resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    ordered = resized if grey else resized[:, :, ::-1]  # OpenCV has blue first
    return np.ascontiguousarray(ordered, dtype=np.uint8)


def _opened_by_opencv(path: str, *, grey: bool) -> Any:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        hint = "apt install python3-pil (or python3-opencv), or give it .npy files"
        raise AgentError("E_NO_DECODER", f"{path}: neither Pillow nor OpenCV is here: {hint}") from None
    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    if image is None:
        raise AgentError("E_IMAGE", f"{path}: not an image that OpenCV reads")
    return image
