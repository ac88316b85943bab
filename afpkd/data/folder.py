"""Images in folders, one folder per class: the layout of torchvision's ImageFolder. Pillow decodes them.

FOLDER/<class>/<anything>.jpg        classes are numbered in the order of their sorted names
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from afpkd.data.dataset import Images, Split
from afpkd.errors import UserError, printable
from afpkd.names import require_lines

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_UNREADABLE = 0.01
"""Share of files that may be unreadable: they are counted and named; more, and the data set is not what it seems."""

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What a file may hold, whatever it is called: the pixels of others Pillow may have read by another program (EPS)."""

_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".png", ".tga", ".tif", ".tiff", ".webp"}
_SUFFIXES |= {".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".pnm", ".ppm"}

_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose 32-bit pixels, as Pillow has them, are 16 bits in the file."""


class FolderSplit(NamedTuple):
    """split: the readable images; ids: their numbers in the sorted list of all files; unreadable: the files left out,
    with the cause of each; others: a note on the files that were not tried."""

    split: Split
    ids: list[int]
    label_names: list[str]
    unreadable: list[str]
    others: list[str]


def read_folder(
    folder: Path, *, size: tuple[int, int], channels: int, num: int | None = None, seed: int = 0
) -> FolderSplit:
    """Read every image below `folder` as uint8, `channels` (1 or 3), `size` (H, W); subfolders of a class count too.

    num: only so many, drawn at random (seeded), where there are more; for one that is unreadable another is drawn.
    An image of that size keeps its pixels; another is scaled (its shorter side, relative to `size`) and cropped at the
    centre. EXIF rotation is applied. UserError: no classes, an empty class, or more than 1 % of the files unreadable.
    """
    label_names, files = listed(folder)
    wanted = len(files) if num is None else min(num, len(files))
    images: list[Images] = []
    labels, ids, unreadable = [], [], []
    with bombs_are_errors():
        for index in _drawn(len(files), wanted, seed):
            if len(images) == wanted:
                break
            path, label = files[index]
            image = try_read_image(path, folder, size=size, channels=channels)
            if isinstance(image, str):
                unreadable.append(image)
                continue
            images.append(image)
            labels.append(label)
            ids.append(index)
    require_mostly_readable(folder, unreadable, len(images) + len(unreadable))
    split = Split(np.stack(images), np.asarray(labels, dtype=np.int64))
    others = [*not_read(folder / name for name in label_names), *of_no_class(folder)]
    return FolderSplit(split, ids, label_names, unreadable, others)


def require_mostly_readable(folder: Path, unreadable: list[str], num: int) -> None:
    """UserError where more than 1 % of `num` files are in the list."""
    if len(unreadable) > MOST_UNREADABLE * num:
        raise UserError(
            "E_DATA_IMAGE",
            f"{folder}: {len(unreadable)} of {num} images cannot be read, the first: {unreadable[0]}: "
            "mend or delete them",
        )


def try_read_image(path: Path, root: Path, *, size: tuple[int, int], channels: int) -> Images | str:
    """`read_image`, or for a broken file its path below `root` and the cause."""
    try:
        return read_image(path, size=size, channels=channels)
    except Exception as error:  # a decoder may raise anything of a broken file
        return printable(f"{path.relative_to(root)}: {' '.join(str(error).split()) or type(error).__name__}")


@contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Raise Pillow's warning of a decompression bomb. Around a pool of threads, never inside: filters are global."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_image(path: Path, *, size: tuple[int, int], channels: int) -> Images:
    """One image file as uint8 C, H, W; a decoder's error where it is broken. Call it within `bombs_are_errors`."""
    from PIL import ImageOps

    with open_image(path) as opened:
        turned = eight_bits(ImageOps.exif_transpose(opened), opened.format)
        image = _fitted(turned.convert("L" if channels == 1 else "RGB"), size)
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def open_image(path: Path) -> Image:
    """The file, of which only the header is read so far; ValueError where it holds none of `FORMATS`."""
    from PIL import Image

    image = Image.open(path)
    if image.format not in FORMATS:
        image.close()
        raise ValueError(f"a file of {image.format}, which is not read: save it as PNG or JPEG")
    return image


def eight_bits(image: Image, file_format: str | None) -> Image:
    """16-bit grey scaled to 8 bits: Pillow's own conversion clips it to white. ValueError: 32 bits, of any range."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and file_format not in _SIXTEEN_BITS):
        raise ValueError("grey of 32 bits, whose black and white nobody knows: save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def _fitted(image: Image, size: tuple[int, int]) -> Image:
    from PIL import Image, ImageOps

    height, width = size
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def listed(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Names of the classes, and (file, class) of every image; UserError where there are none."""
    names = class_names(folder)
    by_class = [[(path, label) for path in _image_files(folder / name)] for label, name in enumerate(names)]
    for name, files in zip(names, by_class, strict=True):
        if not files:
            told = "".join(f"; {note}" for note in not_read([folder / name]))
            read = ", ".join(sorted(_SUFFIXES))
            raise UserError("E_DATA_FOLDER", f"{folder / name}: no image in this class ({read}{told})")
    return names, [file for files in by_class for file in files]


def class_names(folder: Path) -> list[str]:
    """The folders in `folder`, sorted. UserError: none, or one whose name no list of labels can hold."""
    if not folder.is_dir():
        raise UserError("E_DATA_MISSING", f"{folder}: no such folder: one folder per class is expected below it")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError("E_DATA_FOLDER", f"{folder}: holds no folder: one folder per class is expected below it")
    require_lines("E_DATA_FOLDER", folder, names)
    return names


def has_images(folder: Path) -> bool:
    """Whether images lie in the folder itself."""
    return any(path.suffix.lower() in _SUFFIXES and path.is_file() for path in folder.iterdir())


def not_read(folders: Iterable[Path]) -> list[str]:
    """A note on what lies in these folders of classes and is not read: other files, linked folders (not entered)."""
    kinds: dict[str, list[Path]] = {}
    for folder in folders:
        for path in _seen_below(folder):
            if kind := _left_out(path):
                kinds.setdefault(kind, []).append(path.relative_to(folder.parent))
    if not kinds:
        return []
    told = ", ".join(f"{len(found)} {kind} (such as {found[0]})" for kind, found in sorted(kinds.items()))
    return [printable(f"left out, not read: {told}")]


def of_no_class(folder: Path) -> list[str]:
    """A note on images that lie beside the folders of the classes."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    return [printable(f"left out, in no class: {len(found)} images (such as {found[0]})")] if found else []


def _left_out(path: Path) -> str:
    """What kind of thing is not read; empty: an image, or a folder that is entered."""
    if path.is_dir():
        return "linked folder" if path.is_symlink() else ""
    if not path.is_file():
        return "link to nothing" if path.is_symlink() else "no file"
    suffix = path.suffix.lower()
    return "" if suffix in _SUFFIXES else suffix or "without a suffix"


def _drawn(num_files: int, num: int, seed: int) -> Iterator[int]:
    """`num` of all files in their order, then the others at random."""
    if num == num_files:
        yield from range(num)
        return
    generator = np.random.Generator(np.random.PCG64(seed))
    first = sorted(generator.choice(num_files, size=num, replace=False).tolist())
    yield from first
    yield from generator.permutation(sorted(set(range(num_files)) - set(first))).tolist()


def _image_files(folder: Path) -> Iterator[Path]:
    for path in _seen_below(folder):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            yield path


def _seen_below(folder: Path) -> Iterator[Path]:
    """Sorted; nothing hidden, nor what lies in a hidden folder: thumbnails, checkpoints of notebooks."""
    for path in sorted(folder.rglob("*")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path
