"""What a detector's raw output says: boxes, after non-maximum suppression. The one implementation, for every runtime.

A detector's file gives one tensor, N, A, 4 + K: at each of A locations a decoded box (left, top, right, bottom in
pixels of the network's input) and K scores in 0..1. Non-maximum suppression depends on the data, which neither
TensorRT-RTX's builder nor a fixed shape takes: so it happens here, on the host, in numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


SEEN = 0.2
"""From this score on an object is seen, where raw outputs are compared: torchvision's threshold of what it shows."""


class Rule(NamedTuple):
    """How raw output becomes detections; the defaults are FCOS's on COCO."""

    score: float = 0.05
    """A location that scores less says nothing of that class."""
    iou: float = 0.6
    """Of two boxes of one class that overlap more, the better one stays."""
    candidates: int = 1000
    """The best so many enter the suppression."""
    most: int = 100
    """At most so many leave it: COCO counts no more."""


class Found(NamedTuple):
    """The detections of one image, the best first. boxes: float32 M, 4; scores: float32 M; classes: int64 M."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


def detections(raw: NDArray[np.float32], size: tuple[float, float], rule: Rule) -> Found:
    """Give what one image's raw output (A, 4 + K) says, on a network's input or the part of it that is image.

    size: (H, W) of that part; boxes are cut at its edges, and those that have no area left say nothing. A score that is
    not a number says nothing either.
    """
    scores = raw[:, 4:]
    rows, classes = np.nonzero(scores > rule.score)
    values = scores[rows, classes]
    order = np.argsort(-values, kind="stable")[: rule.candidates]
    rows, classes, values = rows[order], classes[order], values[order]
    height, width = size
    boxes = np.clip(raw[rows, :4], 0, np.array([width, height, width, height], dtype=np.float32))
    whole = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[0]
    boxes, classes, values = boxes[whole], classes[whole], values[whole]
    kept = suppressed(boxes, classes, rule.iou, rule.most)
    return Found(boxes[kept].astype(np.float32), values[kept].astype(np.float32), classes[kept].astype(np.int64))


def detections_of(raw: NDArray[np.float32], size: tuple[int, int], scale: float, rule: Rule) -> Found:
    """Give what the raw output for a letterboxed image says, on the image itself.

    size: (H, W) of the image; scale: pixels of the network's input an image pixel.
    """
    found = detections(raw, (size[0] * scale, size[1] * scale), rule)
    return found._replace(boxes=found.boxes / np.float32(scale))


def agreement(expected: NDArray[np.float32], raw: NDArray[np.float32]) -> float:
    """Give the percent of the objects seen in `expected` (N, A, 4 + K) that `raw` sees too; 100 where none is seen.

    Seen: scored `SEEN` or more. Seen too: a detection of that class overlaps by a half, with at least half that score.
    """
    anywhere = (np.inf, np.inf)
    seen = same = 0
    for want, got in zip(expected, raw):  # noqa: B905 (strict= is Python 3.10)
        theirs, ours = detections(want, anywhere, Rule(score=SEEN)), detections(got, anywhere, Rule(score=SEEN / 2))
        near = intersection_over_union(theirs.boxes, ours.boxes) >= 0.5
        found = (near & (theirs.classes[:, None] == ours.classes[None, :])).any(axis=1)
        seen, same = seen + len(found), same + int(found.sum())
    return 100.0 * same / seen if seen else 100.0


def box_error(expected: NDArray[np.float32], raw: NDArray[np.float32]) -> float:
    """Give the largest difference in pixels between boxes at the locations that see something in `expected`."""
    seen = expected[..., 4:].max(axis=-1) >= SEEN
    return float(np.abs(expected[..., :4] - raw[..., :4])[seen].max(initial=0.0))


def suppressed(boxes: NDArray[np.float32], classes: NDArray[np.int64], iou: float, most: int) -> NDArray[np.int64]:
    """Give the first `most` boxes that stay: each that overlaps no better one of its class by more than `iou`.

    boxes: M, 4, the best first.
    """
    kept: list[int] = []
    alive = np.arange(len(boxes))
    while len(alive) and len(kept) < most:
        best, rest = alive[0], alive[1:]
        kept.append(int(best))
        overlaps = intersection_over_union(boxes[best : best + 1], boxes[rest])[0]
        alive = rest[(overlaps <= iou) | (classes[rest] != classes[best])]
    return np.asarray(kept, dtype=np.int64)


def intersection_over_union(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    """Give the overlap of each pair of boxes, M, 4 and P, 4 -> M, P, in 0..1."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    near = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    far = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    shared: NDArray[np.float64] = np.prod(np.clip(far - near, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (ours, theirs)]
    overlap: NDArray[np.float64] = shared / np.maximum(
        areas[0][:, None] + areas[1][None, :] - shared, np.finfo(np.float64).tiny
    )
    return overlap
