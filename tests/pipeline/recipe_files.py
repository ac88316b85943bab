"""Recipes as files."""

from pathlib import Path

PHOTOS = 'extends = "default"\n[data]\nname = "folder"\npath = "photos"\nimage_size = [8, 16]\n'


def written(folder: Path, text: str, name: str = "mine.toml") -> str:
    """Write a recipe; gives its path."""
    (folder / name).write_text(text)
    return str(folder / name)
