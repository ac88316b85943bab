"""Names: of unknown ones what is near, else what there is; of classes that they fit on a line; of metrics in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from afpkd.errors import UserError

T = TypeVar("T")

MOST_SHOWN = 30


def look_up(code: str, kind: str, name: str, table: Mapping[str, T]) -> T:
    """Give `table[name]`; UserError (`code`) with the nearest name, or all known ones, where there is none."""
    if name in table:
        return table[name]
    raise UserError(code, unknown(kind, name, table))


def require_lines(code: str, where: object, names: Iterable[str]) -> None:
    """UserError (`code`) where a class's name is not one line of UTF-8: a bundle's labels.txt holds one name a line."""
    for name in names:
        if name.splitlines() != [name] or name.encode(errors="ignore").decode() != name:
            raise UserError(code, f"{where}: the class {name!r}: a name is one line of UTF-8 text: rename it")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is no known `kind`, and what is near."""
    return f"unknown {kind} '{name}'{nearest(name, known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error line: `: did you mean 'x'?`, or all that is known."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f": did you mean '{close[0]}'?"
    shown = sorted(names)[:MOST_SHOWN]
    return f": known are {', '.join(shown)}{f' and {len(names) - len(shown)} more' if len(names) > len(shown) else ''}"


def in_words(metric: str) -> str:
    """A metric's name for people: `top1` is top-1, `ap50` AP50."""
    return "top-1" if metric == "top1" else metric.upper()
