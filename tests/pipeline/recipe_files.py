"""Recipes as files."""

from pathlib import Path


def written(folder: Path, text: str, name: str = "mine.toml") -> str:
    """Write a recipe; gives its path."""
    (folder / name).write_text(text)
    return str(folder / name)
