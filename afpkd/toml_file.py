"""A TOML file that somebody wrote, as plain values; whatever is wrong with it is one line."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

from afpkd.errors import UserError
from afpkd.record import Json

MAX_BYTES = 1 << 20
"""Recipes, specs and inventories are written by hand; a larger file is something else."""

_MEND = 'mend it there: text stands in "quotes", a table is named in [brackets] on a line of its own'


def read_toml(path: Path) -> Json:
    """Read a TOML file; UserError where it is missing, broken, too large, or no file (a pipe, a device)."""
    try:
        return tomllib.loads(_text(path))
    except OSError as error:
        raise UserError("E_TOML", f"{path}: {error.strerror or error}: name a TOML file") from None
    except ValueError as error:  # broken TOML, broken UTF-8, a number of thousands of digits
        raise UserError("E_TOML", f"{path.name}: not a TOML file: {error}: {_MEND}") from None
    except RecursionError:
        raise UserError("E_TOML", f"{path.name}: not a TOML file: nested too deeply") from None


def _text(path: Path) -> str:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_BYTES:
        raise OSError(f"not a file of at most {MAX_BYTES:,} bytes")
    return path.read_text(encoding="utf-8")
