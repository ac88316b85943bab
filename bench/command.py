"""A bench as a command: a mistake of its user is one line, not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from afpkd.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line's arguments; exit with 2 where it names a mistake."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
