"""A deployed detector says what it sees: boxes as JSON, and drawn into a copy of the image where a library is there."""

from __future__ import annotations

import importlib
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .detections import Found, Rule, detections_of
from .errors import AgentError
from .images import Letterboxed, read_letterboxed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from .bundle import Bundle
    from .runtimes import Runtime

    Json = dict[str, Any]

_EVALUATION_BATCH = 8


class Drawings:
    """Copies with boxes in `folder`, a name for each image of a call: two folders may hold files of one name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: dict[Path, tuple[str, int]] = {}

    def path(self, image: str, index: int) -> Path:
        """Name the copy of the image number `index` of a file: the same again where it is asked for again."""
        stem = Path(image).stem + (f"-{index}" if index else "")
        for number in itertools.count(1):
            target = self._folder / "{}{}.boxes.png".format(stem, f".{number}" if number > 1 else "")
            if self._taken.setdefault(target, (image, index)) == (image, index):
                return target
        raise AssertionError("numbers never end")


def is_detector(bundle: Bundle) -> bool:
    """Say whether a bundle's files give boxes."""
    return bool(bundle.manifest["task"] == "detection")


def rule_of(bundle: Bundle) -> Rule:
    """How the bundle says its raw output is read."""
    return Rule(**bundle.manifest["postprocessing"])


def reader(bundle: Bundle) -> Callable[[NDArray[np.float32]], Found]:
    """Give what follows a call on one evaluation image: raw output -> boxes on the canvas."""
    rule = rule_of(bundle)
    _, _, height, width = bundle.manifest["input"]["shape"]
    return lambda raw: detections_of(raw, (height, width), 1.0, rule)


def seen_objects(
    runtime: Runtime, bundle: Bundle, labels: Sequence[str], path: str, top: int | None, drawings: Drawings | None
) -> Iterator[Json]:
    """Give one answer an image of the file: its `top` best boxes (all: None), in pixels of the image.

    `ms` is the call's time, `post_ms` that of the suppression. drawings: where a copy with the boxes drawn in goes.
    """
    _, channels, height, width = bundle.manifest["input"]["shape"]
    for index, image in enumerate(read_letterboxed(path, (channels, height, width))):
        inputs = bundle.preprocess(image.pixels[None])
        begin = time.perf_counter_ns()
        raw = runtime.infer(inputs)[0]
        called = time.perf_counter_ns()
        found = detections_of(raw, image.size, image.scale, rule_of(bundle))
        ended = time.perf_counter_ns()
        found = Found(found.boxes[:top], found.scores[:top], found.classes[:top])
        answer: Json = {"image": path, "index": index, "boxes": _told(found, labels)}
        if drawings is not None:
            answer["drawn"] = str(drawn(drawings.path(path, index), image, answer["boxes"]))
        yield {**answer, "ms": (called - begin) / 1e6, "post_ms": (ended - called) / 1e6}


def found_in_evaluation(runtime: Runtime, bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Give what is found on every evaluation image, in its own pixels, a row a detection: the host counts."""
    canvases, rule = bundle.evaluation_images(), rule_of(bundle)
    scenes = bundle.evaluation_scenes()
    rows: list[Found] = []
    for start in range(0, len(canvases), _EVALUATION_BATCH):
        raw = runtime.infer(bundle.preprocess(np.asarray(canvases[start : start + _EVALUATION_BATCH])))
        for image, (size, scale) in zip(raw, scenes[start:]):  # noqa: B905 (strict= is Python 3.10)
            rows.append(detections_of(image, size, scale, rule))
    return {
        "found_images": np.repeat(np.arange(len(rows), dtype=np.int64), [len(found.scores) for found in rows]),
        "found_boxes": np.concatenate([found.boxes for found in rows]),
        "found_scores": np.concatenate([found.scores for found in rows]),
        "found_classes": np.concatenate([found.classes for found in rows]),
    }


def drawn(target: Path, image: Letterboxed, boxes: Sequence[Json]) -> Path:
    """Write the image with its boxes, as PNG; AgentError E_FILE, E_NO_DECODER: neither Pillow nor OpenCV is there."""
    height, width = (max(1, round(side * image.scale)) for side in image.size)
    pixels = np.ascontiguousarray(image.pixels[:, :height, :width].transpose(1, 2, 0))
    scaled = [[edge * image.scale for edge in entry["box"]] for entry in boxes]
    names = ["{} {:.2f}".format(entry["label"], entry["score"]) for entry in boxes]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _draw_with_pillow(pixels, scaled, names, target)
        except ImportError:
            _draw_with_opencv(pixels, scaled, names, target)
    except OSError as error:
        message = f"{target}: {error.strerror or error}: free some disk, or name another folder to draw into"
        raise AgentError("E_FILE", message) from None
    return target


def _told(found: Found, labels: Sequence[str]) -> list[Json]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist())  # noqa: B905 (Python 3.10)
    return [{"class": kind, "label": labels[kind], "score": score, "box": box} for box, score, kind in rows]


def _draw_with_pillow(pixels: NDArray[np.uint8], boxes: list[list[float]], names: list[str], target: Path) -> None:
    import PIL.Image
    import PIL.ImageDraw

    picture = PIL.Image.fromarray(pixels)
    pen = PIL.ImageDraw.Draw(picture)
    for box, name in zip(boxes, names):  # noqa: B905 (Python 3.10)
        pen.rectangle(box, outline=_COLOUR)
        place = (box[0] + 2, box[1] + 1)
        try:
            pen.text(place, name, fill=_COLOUR)
        except UnicodeEncodeError:  # before Pillow 10.1 the font that it brings knows Latin-1 alone
            pen.text(place, name.encode("latin-1", "replace").decode("latin-1"), fill=_COLOUR)
    picture.save(target)


def _draw_with_opencv(pixels: NDArray[np.uint8], boxes: list[list[float]], names: list[str], target: Path) -> None:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        hint = "apt install python3-pil (or python3-opencv), or leave --draw out"
        raise AgentError("E_NO_DECODER", f"neither Pillow nor OpenCV is here: {hint}") from None
    picture = np.ascontiguousarray(pixels[:, :, ::-1])  # OpenCV has blue first
    for box, name in zip(boxes, names):  # noqa: B905 (Python 3.10)
        left, top, right, bottom = (round(edge) for edge in box)
        cv2.rectangle(picture, (left, top), (right, bottom), _COLOUR[::-1])
        cv2.putText(picture, name, (left + 2, top + 10), cv2.FONT_HERSHEY_PLAIN, 0.8, _COLOUR[::-1])
    target.write_bytes(cv2.imencode(".png", picture)[1].tobytes())  # imwrite hides that a disk is full


_COLOUR = (0, 200, 60)
