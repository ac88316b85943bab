"""`agent.pyz predict IMAGE…`, on the device: the deployed student says what it sees. One JSON line an image.

`--stdin` reads lines from stdin instead: a path, or {"image": path}. `--top N` says how many classes (5), or of a
detector how many boxes (all); `--draw FOLDER` leaves copies with the boxes there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .bundle import Bundle
from .classes import best_classes
from .deployment import loaded, require_golden
from .errors import AgentError
from .images import read_images
from .objects import Drawings, is_detector, seen_objects
from .releases import CURRENT, FACTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import IO

    from numpy.typing import NDArray

    from .runtimes import Runtime

    Json = dict[str, Any]


_TOP = 5


class _Arguments(NamedTuple):
    images: Sequence[str]
    stdin: bool
    top: int | None
    draw: Path | None


class Deployed:
    """The release in `folder`, loaded. AgentError E_RELEASE where there is none.

    Another engine than the one that was checked when it was deployed (of another power mode or JetPack, or built anew)
    is held against the golden outputs first: E_GOLDEN.
    """

    def __init__(self, folder: Path) -> None:
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise AgentError("E_RELEASE", f"{folder}: nothing is deployed here: run `afpkd deploy` first") from None
        self._bundle = Bundle(str(folder / "bundle"))
        options = facts["options"]
        self._runtime: Runtime
        self._runtime, entry = loaded(self._bundle, facts["precision"], facts["runtime"], facts["threads"], options)
        if _engine(self._runtime.describe()) != _engine(facts["runtime_facts"]):
            require_golden(self._runtime, self._bundle, entry)
        self._labels = (folder / "bundle" / self._bundle.manifest["labels"]).read_text(encoding="utf-8").splitlines()
        self.detects = is_detector(self._bundle)
        self.release = facts["id"]

    def predict(self, path: str, top: int | None, drawings: Drawings | None = None) -> Iterator[Json]:
        """Give one answer an image of the file: the `top` best classes with their probability, and the call's time.

        Of a detector: its boxes (`objects.seen_objects`), also drawn into copies.
        """
        if self.detects:
            yield from seen_objects(self._runtime, self._bundle, self._labels, path, top, drawings)
            return
        _, channels, height, width = self._bundle.manifest["input"]["shape"]
        for index, pixels in enumerate(read_images(path, (channels, height, width))):
            images = self._bundle.preprocess(pixels[None])
            begin = time.perf_counter_ns()
            logits = self._runtime.infer(images)[0]
            elapsed_ms = (time.perf_counter_ns() - begin) / 1e6
            yield {"image": path, "index": index, "top": self._best(logits, top or _TOP), "ms": elapsed_ms}

    def _best(self, logits: NDArray[np.float32], top: int) -> list[Json]:
        found = best_classes(logits, top)
        return [{"class": index, "label": self._labels[index], "probability": chance} for index, chance in found]


def _engine(runtime_facts: Json) -> str | None:
    """The hash of a runtime's engine; None where it has none."""
    sha256: str | None = runtime_facts.get("engine", {}).get("sha256")
    return sha256


def main(words: Sequence[str], archive: Path, output: IO[str]) -> int:
    """Predict what the arguments say, a line an image to `output`; exit code 0 exactly where every image was read.

    AgentError where it cannot even begin, or a line of stdin cannot be understood.
    """
    arguments, code = _parsed(words), 0
    deployed, drawings = Deployed(_release_of(archive)), Drawings(arguments.draw) if arguments.draw else None
    if drawings and not deployed.detects:
        raise AgentError("E_USAGE", f"--draw: {deployed.release} is a classifier, which finds no boxes: leave it out")
    for path in _asked(arguments):
        try:
            for answer in deployed.predict(path, arguments.top, drawings):
                output.write(json.dumps(answer) + "\n")
        except AgentError as error:  # the next image may be fine
            told = {"code": error.code, "message": error.message}
            output.write(json.dumps({"image": path, "error": told}) + "\n")
            code = 1
    return code


def _parsed(words: Sequence[str]) -> _Arguments:
    rest, stdin, top, draw = list(words), False, None, None
    if "--stdin" in rest:
        rest.remove("--stdin")
        stdin = True
    if "--top" in rest:
        at = rest.index("--top")
        number = rest[at + 1] if at + 1 < len(rest) else ""
        if not number.isdigit() or int(number) == 0:
            raise AgentError("E_USAGE", "--top wants a number of classes")
        rest[at : at + 2], top = [], int(number)
    if "--draw" in rest:
        at = rest.index("--draw")
        folder = rest[at + 1] if at + 1 < len(rest) else ""
        if not folder or folder.startswith("--"):
            raise AgentError("E_USAGE", "--draw wants a folder")
        rest[at : at + 2], draw = [], Path(folder)
    if stdin == bool(rest) or any(word.startswith("--") for word in rest):
        raise AgentError("E_USAGE", "predict [--top N] [--draw FOLDER] IMAGE…, or predict [--top N] --stdin")
    return _Arguments(rest, stdin, top, draw)


def _asked(arguments: _Arguments) -> Iterable[str]:
    if not arguments.stdin:
        yield from arguments.images
        return
    for line in map(str.strip, sys.stdin):
        if line.startswith("{"):
            try:
                yield str(json.loads(line)["image"])
            except (ValueError, KeyError):
                raise AgentError("E_REQUEST", 'a line is a path, or {"image": path}') from None
        elif line:
            yield line


def _release_of(archive: Path) -> Path:
    """An agent in a release speaks for it; one in the work folder speaks for the current release."""
    folder = archive.resolve().parent
    return folder if (folder / FACTS).exists() else folder / CURRENT
