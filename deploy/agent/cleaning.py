"""The verb `gc`: what the project left on the device, and how to be rid of it."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import clocks, jobs, store
from .errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

OURS = ("agent.pyz", "blobs", "jobs", "engines", "releases", "current", "device.lock")
"""What may be removed of all that the project makes in the work folder: what clocks there were before goes with putting
them back alone (`clocks.put_back`). Anything else there is somebody else's, and stays."""

_PARTIAL_S = 3600.0
"""An upload's temporary file that did not change for so long has lost its host."""


def collect(document: Json) -> Json:
    """Drop ended jobs older than `older_than_s` and files nothing uses beyond `budget_bytes`; with `all`, everything.

    Gives `freed_bytes` and `kept_bytes`. AgentError where all shall go: E_BUSY while a job runs, that of
    `clocks.put_back` where clocks or a power mode that were left changed cannot be put back; nothing is removed then.
    """
    if document["all"]:
        _leave_nothing_changed()
    before = _size_bytes()
    for partial in [*Path().glob(".part-*"), *store.BLOBS.glob(".part-*")]:
        if document["all"] or time.time() - partial.stat().st_mtime > _PARTIAL_S:
            partial.unlink()
    if not document["all"]:
        jobs.remove_ended(document["older_than_s"])
        store.drop_unused(document["budget_bytes"])
        kept = _size_bytes()
        return {"freed_bytes": before - kept, "kept_bytes": kept}
    _remove_everything()
    return {"freed_bytes": before, "kept_bytes": 0}


def _leave_nothing_changed() -> None:
    running = jobs.holder()
    if running:
        raise AgentError("E_BUSY", f"in use by {running}: nothing was removed")
    try:
        clocks.put_back(Path())
    except AgentError as error:
        told = f"clocks or power mode not put back, nothing was removed: {error.message}"
        raise AgentError(error.code, told) from None


def _remove_everything() -> None:
    """All that is ours, and the work folder where nothing else is in it. This process has read the agent already."""
    for path in map(Path, OURS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.exists() or path.is_symlink():
            path.unlink()
    with suppress(OSError):
        Path.cwd().rmdir()


def _size_bytes() -> int:
    """Bytes of ours on disk; a blob that jobs link to counts once."""
    found = [path.lstat() for path in _files()]
    return sum({stat.st_ino: stat.st_size for stat in found}.values())


def _files() -> Iterator[Path]:
    for path in [*map(Path, OURS), *Path().glob(".part-*")]:
        if path.is_dir() and not path.is_symlink():
            yield from (inner for inner in path.rglob("*") if inner.is_file() and not inner.is_symlink())
        elif path.is_file() and not path.is_symlink():
            yield path
