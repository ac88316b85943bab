"""Every kind of error by its code, for the verb `explain` and for docs/reference.md."""

from __future__ import annotations

from afpkd.errors import CATALOGUE, Entry
from afpkd.names import look_up
from deploy.device_errors import DEVICE_CATALOGUE

ERRORS: dict[str, Entry] = {**CATALOGUE, **DEVICE_CATALOGUE}


def entries_of(code: str | None) -> dict[str, Entry]:
    """The entry of a code, in any case and without its E_ if need be; all of them without one. UserError."""
    if code is None:
        return ERRORS
    name = f"E_{code.strip('[]').upper().removeprefix('E_')}"
    return {name: look_up("E_UNKNOWN_NAME", "error", name, ERRORS)}


def text_of(entries: dict[str, Entry]) -> str:
    """One entry in full, or a line each."""
    if len(entries) > 1:
        return "\n".join(f"{code:<{max(map(len, entries))}}  {entry.cause}" for code, entry in entries.items())
    ((code, entry),) = entries.items()
    return f"{code}\n  cause  {entry.cause}\n  mend   {entry.mend}"
