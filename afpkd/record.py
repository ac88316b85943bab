"""Records: what a stage leaves behind, so that every number can be traced. Standard library only.

Rule: the artifact is written first, its JSON record last, each atomically. The record's existence means "complete".
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afpkd.errors import UserError

Json = dict[str, Any]

OURS = "afpkd-edge"
_ROOT = Path(__file__).resolve().parent.parent

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "fvcore",
    "tensorrt-rtx",
    "snakemake",
)

_MAKES = "`make distill export profile` runs all"


def sha256_of(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hash a JSON value by its canonical form: sorted keys, no spaces, no NaN; TypeError on anything else."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path` in one step, on error nothing stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/afpkd/NAME, or under ~/.cache; it need not exist."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "afpkd" / name


def expanded(text: str) -> Path:
    """The path with `~` and `~user` at its start replaced, as a shell does: the home of nobody stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  pathlib's raises there


def private_folder(folder: Path) -> Path:
    """Make a folder where anybody may make one, as in /tmp; UserError where it is not this user's alone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077 or folder.is_symlink():
        raise UserError("E_FILE", f"{folder}: not this user's alone: remove it, or others may change what lies there")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_record(path: Path, record: Json) -> None:
    """Write a JSON record atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_record(path: Path) -> Json:
    """Read a JSON record; UserError where it is missing or broken."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("a pipe or a device")  # noqa: TRY301  it would be waited for
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "E_RUN_MISSING", f"{path}: no such record: run the stage that makes it first ({_MAKES})"
        ) from None
    except (IsADirectoryError, NotADirectoryError) as error:
        told = f"{path}: {error.strerror}: name a record (.json), or the folder that holds it"
        raise UserError("E_RECORD", told) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            "E_RECORD", f"{path}: not a readable record ({error}): delete it and run its stage again"
        ) from None
    if not isinstance(record, dict):
        raise UserError(
            "E_RECORD", f"{path}: not a record (a JSON object was expected): delete it and run its stage again"
        )
    return record


@functools.cache
def provenance() -> Json:
    """Say which code, packages and machine make a record: `versions`, `git_commit`, `machine`."""
    return {"versions": _versions(), "git_commit": _git_commit(), "machine": _machine()}


def our_version() -> str:
    """This program's version: pyproject.toml says it; of a wheel, which has none, the metadata made from it."""
    project = _ROOT / "pyproject.toml"
    if not project.is_file():
        return importlib.metadata.version(OURS)
    return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), OURS: our_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    """The commit of this source tree, with `+` where tracked files differ from it; None where nobody knows.

    The rows that benches append are no source.

    An unpacked archive has it in `commit.txt` (git's export-subst), here with `?`: whether files were changed since,
    nobody can tell.
    """
    if not (_ROOT / ".git").exists():
        return _archived_commit(Path(__file__).with_name("commit.txt"))
    try:
        source = ("--untracked-files=no", "--", ".", ":!bench/results")
        return _git(_ROOT, "rev-parse", "HEAD") + ("+" if _git(_ROOT, "status", "--porcelain", *source) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _archived_commit(path: Path) -> str | None:
    try:
        commit = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return f"{commit}?" if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _machine() -> dict[str, str | int | None]:
    return {"system": platform.platform(), "processor": _processor(), "num_cpus": os.cpu_count()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()
