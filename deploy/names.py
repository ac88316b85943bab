"""Look a user's word up in a table; say what is near where it is not there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from afpkd.record import UserError

T = TypeVar("T")


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Give `table[name]`; UserError with the known names, and the nearest one, where there is none."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"unknown {kind} {name!r}{hint}: known are {', '.join(sorted(table))}")
