"""A disk that is full, or that refuses a path, told as one line: which, why, what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from afpkd.errors import UserError
from pipeline.memory import is_out_of_memory, words_of

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WORDS = re.compile(  # of libraries that keep the kernel's number to themselves: safetensors, torch.save, numpy
    r"no space left on device|os error 28|disk quota exceeded"
    r"|pytorchstreamwriter failed writing|iostream error|inline_container.*unexpected pos"
    r"|\d+ requested and \d+ written",
    re.IGNORECASE,
)
_LITTLE_BYTES = 16 << 20
_REFUSED = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
        "check the path, its owner and its permissions, or name another place",
    ),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
        "a file lies where a folder is needed, or a folder in a file's place: name another place, or move it away",
    ),
}
"""What a file system says of a path -> what a user does about it."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk is full; a UserError says itself what it is."""
    if error is None or isinstance(error, UserError):
        return False
    told = getattr(error, "errno", None) in _FULL or _WORDS.search(str(error)) is not None
    return told or is_full(error.__cause__ or error.__context__)


def explained(error: Exception, folder: Path) -> Exception:
    """The error; a UserError where a disk (that of `folder`) or memory is full, or a path is refused."""
    if is_full(error):
        return full(folder)
    if is_out_of_memory(error):
        mend = "end what else uses it, set AFPKD_CUDA_GRAPH=0 (on a GPU), or lower batch_size"
        return UserError("E_MEMORY", f"memory ran out: {words_of(error)}: {mend}")
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
        return UserError("E_FILE", f"{error.filename}: {error.strerror}: {_REFUSED[error.errno]}")
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str) and _keeps_nothing(error.filename):
        return UserError("E_FILE", f"{error.filename}: nothing can be made there: name another place")
    return error  # another file that is not there may be a fault of ours


def full(folder: Path) -> UserError:
    """The line for a person; that of temporary files may be another disk. A full one touches nothing finished."""
    place, mend = folder, "make room"
    if not nearly_full(folder) and nearly_full(temporary := Path(os.environ.get("TMPDIR") or "/tmp")):  # noqa: S108 (as tempfile)
        place, mend = temporary, "make room or set TMPDIR"
    free, what = shutil.disk_usage(_existing(place)).free, "the disk" if nearly_full(place) else "a disk or a quota"
    told = f"{place.resolve()}: {what} is full ({free / 1e6:.1f} MB free): {mend}, then give the same command again"
    return UserError("E_DISK", f"{told}: what was finished stays, training continues from its last checkpoint")


def nearly_full(folder: Path) -> bool:
    """Whether so little is free that whatever failed there may have failed for that."""
    return shutil.disk_usage(_existing(folder)).free < _LITTLE_BYTES


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _keeps_nothing(path: str) -> bool:
    """Whether it lies in a file system without any room, such as /proc: what is made there is "no such file"."""
    return shutil.disk_usage(_existing(Path(path))).total == 0
