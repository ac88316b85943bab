"""What the kernel and the system tell in files: text or a number, nothing where a file is missing or closed to us."""

from __future__ import annotations

import re
from pathlib import Path


def text_of(path: str | Path) -> str:
    """The file's text; empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def number_of(path: Path) -> int | None:
    """The whole number that the file holds; None where it holds none."""
    text = text_of(path).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def matching(root: Path, pattern: str) -> list[Path]:
    """Files below `root`, in the same order every time."""
    return sorted(root.glob(pattern))
