"""A full disk, told as one line: which, how much is free, what to do. Nothing that was finished is touched by it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WORDS = (  # of libraries that keep the kernel's number to themselves
    "no space left on device",
    "os error 28",
    "disk quota exceeded",
    "pytorchstreamwriter failed writing",
    "iostream error",  # torch.save, at its end
    "inline_container",  # the same, in the middle
    " requested and ",  # numpy: 100 requested and 7 written
)
_LITTLE_BYTES = 16 << 20


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk is full."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if getattr(error, "errno", None) in _FULL or any(words in str(error).lower() for words in _WORDS):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def full_line(folder: Path) -> str:
    """The line for a person."""
    free = shutil.disk_usage(_existing(folder)).free
    return (
        f"{folder}: the disk is full ({free / 1e6:.1f} MB free): make room, then give the same command again: what was "
        "finished stays, training continues from its last checkpoint"
    )


def nearly_full(folder: Path) -> bool:
    """Whether so little is free that whatever failed there may have failed for that."""
    return shutil.disk_usage(_existing(folder)).free < _LITTLE_BYTES


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
