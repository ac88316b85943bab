"""Seeded generators of broken input: bytes that were flipped, documents whose values are not what anybody expects."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**63,
        10**400,
        -0.5,
        1e308,
        "",
        "\n",
        "\x1b[2J\x1b[31mred",
        "../../etc/passwd",
        "/etc/passwd",
    ),
    *("a" * 100_000, "-oProxyCommand=touch pwned", "$(touch pwned)", "; touch pwned", "\N{PILE OF POO}\x00", "nan"),
    *([], [[]], [1, "a", None], {}, {"a": {"b": []}}, ["x"] * 10_000, "__import__('os').system('touch pwned')"),
)


class Bomb:
    """Unpickled, it would make the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.path}'",))


def broken_bytes(whole: bytes, seed: int) -> bytes:
    """Cut short, with flipped bits, with a part doubled or replaced, or something else altogether."""
    chance = random.Random(seed)
    kind, content = chance.randrange(6), bytearray(whole)
    if kind == 0:
        return whole[: chance.randrange(len(whole))]
    if kind == 1:
        for _ in range(chance.randint(1, 30)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return bytes(content)
    if kind == 2:
        at = chance.randrange(len(whole))
        return whole[:at] + whole[max(0, at - 500) :]
    if kind == 3:
        at = chance.randrange(max(1, len(whole) - 8))
        content[at : at + 8] = chance.choice([b"\xff" * 8, b"\x00" * 8, b"\x80" * 8])
        return bytes(content)
    if kind == 4:
        return chance.randbytes(chance.randint(0, 4096))
    return whole + whole


def broken_document(whole: Any, seed: int) -> Any:
    """A copy with one to three values, anywhere in it, replaced by junk, removed, or added."""
    chance, document = random.Random(seed), copy.deepcopy(whole)
    for _ in range(chance.randint(1, 3)):
        places = list(_places(document))
        if not places:
            break
        holder, key = chance.choice(places)
        kind = chance.randrange(4)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(["x", "__class__", "../x", "\x1b]0;x\x07", ""])] = copy.deepcopy(chance.choice(JUNK))
        else:
            holder[key] = copy.deepcopy(chance.choice(JUNK))
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(document, dict | list):
        for key, value in list(document.items() if isinstance(document, dict) else enumerate(document)):
            yield document, key
            yield from _places(value)


def one_line(error: BaseException) -> None:
    """What a user sees: something, on one line, that moves no cursor and fills no screen."""
    text = str(error)
    assert text.strip()
    assert text.isprintable(), text
    assert len(text) < 2000
