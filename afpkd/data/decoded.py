"""Image files as one uint8 array, decoded once: later stages read the array that the first one left.

What counts is the content of the files. Kept beside each other under ~/.cache/afpkd/decoded (XDG_CACHE_HOME): the hash
of every file with the sizes and times by which it is known to be unchanged, and the decoded images. Delete them freely;
where that folder cannot be written, files are read each time. The files themselves are never touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np

from afpkd.data.dataset import Images
from afpkd.data.folder import bombs_are_errors, require_mostly_readable, try_read_image
from afpkd.errors import UserError
from afpkd.record import Json, atomic_path, cache_folder, digest, sha256_of, write_record

_DECODER = 2
"""Of `afpkd.data.folder`: another number wherever the same file gives other pixels than before."""


class Decoded(NamedTuple):
    """images: the readable files, uint8 M, C, H, W; ids: their places in the list; unreadable: file and cause."""

    images: Images
    ids: list[int]
    unreadable: list[str]


def decode(root: Path, files: Sequence[Path], *, size: tuple[int, int], channels: int) -> Decoded:
    """Decode `files` (all below `root`) to `size` (H, W); see `read_image`. UserError where over 1 % are unreadable."""
    content = _content(root, files)
    name = digest([str(root.resolve()), list(size), channels])[:16]
    with _alone(name):
        found = _kept(name, content)
        if found is None:
            found = _decode_all(root, files, size, channels)
            if _content(root, files) != content:
                raise UserError(
                    "E_DATA_CHANGED", f"{root}: files changed while they were read: start again when they rest"
                )
            _keep(name, content, found)
    require_mostly_readable(root, found.unreadable, len(files))
    return found


def file_hashes(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file by its path below `root`; a file of unchanged size and time is not read again."""
    seen = {str(path.relative_to(root)): [(stat := path.stat()).st_size, stat.st_mtime_ns] for path in files}
    kept = _cache() / f"{digest([str(root.resolve()), 'hashes'])[:16]}.json"
    before: Json = {}
    with suppress(OSError, ValueError):
        before = json.loads(kept.read_text(encoding="utf-8"))
    known = {name: before[name][2] for name, facts in seen.items() if before.get(name, [None])[:2] == facts}
    todo = [name for name in seen if name not in known]
    if todo:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            known |= dict(zip(todo, pool.map(lambda name: sha256_of(root / name), todo), strict=True))
        with suppress(OSError):
            write_record(kept, before | {name: [*facts, known[name]] for name, facts in seen.items()})
    return {name: known[name] for name in seen}


def _content(root: Path, files: Sequence[Path]) -> str:
    """What is decoded, these files in this order, and by what."""
    from PIL import __version__

    return digest([_DECODER, __version__, *file_hashes(root, files).items()])


def _decode_all(root: Path, files: Sequence[Path], size: tuple[int, int], channels: int) -> Decoded:
    """Decode in threads: Pillow works outside of the interpreter's lock."""
    images = np.empty((len(files), channels, *size), np.uint8)
    unreadable: dict[int, str] = {}

    def read(index: int) -> None:
        found = try_read_image(files[index], root, size=size, channels=channels)
        if isinstance(found, str):
            unreadable[index] = found
        else:
            images[index] = found

    with bombs_are_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(files))):
            pass
    ids = [index for index in range(len(files)) if index not in unreadable]
    return Decoded(images[ids] if unreadable else images, ids, [unreadable[index] for index in sorted(unreadable)])


def _cache() -> Path:
    return cache_folder("decoded")


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One process decodes, the stages that start beside it wait and read; no lock where nothing can be written."""
    lock = None
    with suppress(OSError):
        _cache().mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(_cache() / f"{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _kept(name: str, content: str) -> Decoded | None:
    facts, images = _files(name, content)
    try:
        found = json.loads(facts.read_text(encoding="utf-8"))
        return Decoded(np.load(images, mmap_mode="r", allow_pickle=False), found["ids"], found["unreadable"])
    except (OSError, ValueError, KeyError):
        return None


def _keep(name: str, content: str, found: Decoded) -> None:
    """Write the images, then the facts that say they are whole; images of an earlier content go."""
    facts, images = _files(name, content)
    with suppress(OSError):
        for old in _cache().glob(f"{name}-*"):
            old.unlink()
        with atomic_path(images) as part, part.open("wb") as file:
            np.save(file, found.images)
        write_record(facts, {"ids": found.ids, "unreadable": found.unreadable})


def _files(name: str, content: str) -> tuple[Path, Path]:
    stem = _cache() / f"{name}-{content[:16]}"
    return stem.with_suffix(".json"), stem.with_suffix(".npy")
