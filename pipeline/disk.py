"""A full disk, told as one line: which, how much is free, what to do. Nothing that was finished is touched by it."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from afpkd.record import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WORDS = re.compile(  # of libraries that keep the kernel's number to themselves: safetensors, torch.save, numpy
    r"no space left on device|os error 28|disk quota exceeded"
    r"|pytorchstreamwriter failed writing|iostream error|inline_container.*unexpected pos"
    r"|\d+ requested and \d+ written",
    re.IGNORECASE,
)
_LITTLE_BYTES = 16 << 20


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk is full; a UserError says itself what it is."""
    if error is None or isinstance(error, UserError):
        return False
    told = getattr(error, "errno", None) in _FULL or _WORDS.search(str(error)) is not None
    return told or is_full(error.__cause__ or error.__context__)


def explained(error: Exception, folder: Path) -> Exception:
    """The error; where it says that a disk is full a UserError about that of `folder`."""
    return full(folder) if is_full(error) else error


def full(folder: Path) -> UserError:
    """The line for a person."""
    free = shutil.disk_usage(_existing(folder)).free
    return UserError(
        f"{folder}: the disk is full ({free / 1e6:.1f} MB free): make room, then give the same command again: what was "
        "finished stays, training continues from its last checkpoint"
    )


def nearly_full(folder: Path) -> bool:
    """Whether so little is free that whatever failed there may have failed for that."""
    return shutil.disk_usage(_existing(folder)).free < _LITTLE_BYTES


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
