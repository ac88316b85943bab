"""Images of a stranger: left out, read, or an error with a code."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afpkd.data.folder import read_folder
from afpkd.errors import UserError
from deploy.agent.errors import AgentError
from deploy.agent.images import read_images
from tests.hostile.mutations import broken_bytes, one_line


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it is so large, whatever it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def image_bytes(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def broken_image(seed: int) -> bytes:
    return broken_bytes(image_bytes(("PNG", "JPEG", "WEBP", "GIF", "TIFF")[seed % 5]), seed)


IMAGES = {
    "50,000 pixels wide": png(50_000, 50_000),
    "2**31 pixels wide": png(2**31 - 1, 2**31 - 1),
    "no pixels": png(0, 0),
    "a bomb": png(9_000, 9_000, b"\0" * 243_000_000),
    "nothing": b"",
    "markup": b"<svg/>",
    **{str(seed): broken_image(seed) for seed in range(30)},
}


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES.keys())
def test_a_broken_image_among_good_ones_is_left_out_or_read(tmp_path: Path, content: bytes) -> None:
    for number in range(100):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes("PNG") if number < 2 else path.parent.joinpath(f"{number % 2}.png").read_bytes())
    (tmp_path / "data" / "a" / "98.png").write_bytes(content)
    found = read_folder(tmp_path / "data", size=(8, 8), channels=3)
    assert len(found.split.labels) + len(found.unreadable) == 100
    for line in found.unreadable:
        one_line(UserError("E_FILE", line))


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES.keys())
def test_a_broken_image_on_the_device_is_an_error_with_a_code(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    try:
        assert read_images(str(path), (3, 8, 8)).shape == (1, 3, 8, 8)
    except AgentError as error:
        assert error.code == "E_IMAGE"
