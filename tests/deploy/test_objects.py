"""Copies of images with their boxes drawn in: none is lost to another's name, none is told that is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.ImageDraw
import pytest

from deploy.agent.errors import AgentError
from deploy.agent.images import Letterboxed, read_images
from deploy.agent.objects import Drawings, _draw_with_pillow, drawn

IMAGE = Letterboxed(np.zeros((3, 24, 32), np.uint8), (24, 32), 1.0)
BOXES = [{"label": "cat", "score": 0.5, "box": [4.0, 4.0, 20.0, 20.0]}]


def test_files_of_one_name_get_copies_of_several(tmp_path: Path) -> None:
    drawings = Drawings(tmp_path)
    asked = [("cat/001.jpg", 0), ("dog/001.jpg", 0), ("cat/001.jpg", 1), ("cat/001-1.jpg", 0), ("cow/001.jpg", 0)]
    names = ["001.boxes.png", "001.2.boxes.png", "001-1.boxes.png", "001-1.2.boxes.png", "001.3.boxes.png"]
    for _ in range(2):  # a camera's file is asked for again and again
        assert [drawings.path(*one).name for one in asked] == names


def test_a_label_that_an_old_pillow_cannot_write_is_drawn_as_far_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 10.1 its own font knew Latin-1 alone, and raised; Ubuntu 20.04 and 22.04 have such."""
    written: list[str] = []

    def text(self: object, place: object, words: str, **options: object) -> None:
        words.encode("latin-1")
        written.append(words)

    monkeypatch.setattr(PIL.ImageDraw.ImageDraw, "text", text)
    _draw_with_pillow(np.zeros((24, 32, 3), np.uint8), [[1.0, 2.0, 9.0, 9.0]], ["červenka"], tmp_path / "x.png")
    assert written == ["?ervenka"]
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize("library", ["PIL", "cv2"])
def test_a_copy_that_cannot_be_written_is_one_line(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "cv2":
        monkeypatch.setitem(sys.modules, "PIL", None)
    target = drawn(tmp_path / "drawn" / "x.boxes.png", IMAGE, BOXES)
    assert read_images(str(target), (3, 24, 32)).any()
    full = tmp_path / "full.png"
    full.symlink_to("/dev/full")
    for place, why in ((full, "No space left on device"), (target / "x.png", "File exists")):
        with pytest.raises(AgentError, match=f"{place}: {why}: free some disk, or name another folder") as caught:
            drawn(place, IMAGE, BOXES)
        assert caught.value.code == "E_FILE"
