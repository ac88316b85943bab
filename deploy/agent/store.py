"""Files by content: `blobs/<sha256>`. What is there is never sent again; a job sees its files as links to blobs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine_cache import key_of
from .errors import AgentError
from .releases import engine_identities

if TYPE_CHECKING:
    from collections.abc import Iterable

    Json = dict[str, Any]

BLOBS = Path("blobs")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEADROOM = 64 << 20


def missing(document: Json) -> Json:
    """Say which blobs of `files` (sha256 -> bytes) must be sent, once there is room for them.

    A blob that was damaged since it came counts as missing. What nothing uses and is over `budget_bytes` is dropped on
    the way. AgentError E_DISK where room cannot be made even by dropping all that nothing uses.
    """
    wanted: dict[str, int] = document["files"]
    absent = {sha256: size for sha256, size in wanted.items() if not _sound(blob(sha256))}
    drop_unused(document["budget_bytes"], wanted)
    _make_room(sum(absent.values()) + _HEADROOM, keep=set(wanted))
    return {"missing": sorted(absent)}


def blob(sha256: str) -> Path:
    """Give the place of a blob; AgentError E_REQUEST where this is no hash."""
    if not _SHA256.fullmatch(sha256):
        raise AgentError("E_REQUEST", f"not a sha256: {sha256!r}")
    return BLOBS / sha256


def link_into(folder: Path, files: dict[str, str]) -> None:
    """Put files (name -> sha256) into `folder`; AgentError E_BLOB where one is not in the store."""
    for name, sha256 in files.items():
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise AgentError("E_REQUEST", f"{name}: outside the job's folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _link(blob(sha256), path)
        except FileNotFoundError:
            raise AgentError("E_BLOB", f"{name}: its bytes are not on the device: send them again") from None
        os.utime(blob(sha256))  # used: the last to be dropped


def drop_unused(budget_bytes: int, keep: Iterable[str] = ()) -> int:
    """Drop what no job or release uses, least recently used first, until `budget_bytes` are left; give bytes freed."""
    unused = [path for path in _unused() if path.name not in keep]
    left, freed = sum(path.stat().st_size for path in unused), 0
    for path in sorted(unused, key=lambda path: path.stat().st_mtime):
        if left - freed <= budget_bytes:
            break
        freed += path.stat().st_size
        path.unlink()
    return freed


def sha256_of(*paths: Path) -> str:
    """Hash a file's bytes, or those of several as if they were one."""
    sha256 = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(partial(file.read, 1 << 20), b""):
                sha256.update(block)
    return sha256.hexdigest()


def free_bytes() -> int:
    """Bytes this user may still write on the disk of the work folder."""
    disk = os.statvfs(".")
    return disk.f_bavail * disk.f_frsize


def _sound(path: Path) -> bool:
    return path.is_file() and sha256_of(path) == path.name


def _make_room(needed: int, keep: set[str]) -> None:
    if free_bytes() < needed:
        drop_unused(0, keep)
    free = free_bytes()
    if free < needed:
        numbers = f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
        raise AgentError("E_DISK", f"{numbers} even without files no job or release uses: free some disk on the device")


def _unused() -> list[Path]:
    """Blobs that nothing links to, and engines of no release: both can be had again. Not what is being sent just now.

    A release predicts with the engine it was checked with: without it, it would wait minutes for another.
    """
    blobs = [path for path in BLOBS.glob("*") if _SHA256.fullmatch(path.name) and path.stat().st_nlink == 1]
    used = set(map(key_of, engine_identities(Path())))
    return blobs + [path for path in Path("engines").rglob("*") if path.is_file() and path.stem not in used]


def _link(source: Path, destination: Path) -> None:
    """Hard link, or copy where the file system has no such links."""
    try:
        os.link(source, destination)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, destination)
