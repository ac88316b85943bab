"""The board's clocks, for those who ask for it: locked while a job measures, and put back whatever happens.

`jetson_clocks` needs root; `sudo -n` is asked and never a password. What the clocks were before lies in a file, so that
after a crash the next contact can put them back. Never run on a Jetson by us.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from .errors import AgentError

STORED = "clocks.stored"
"""In the work folder: what `jetson_clocks --store` wrote."""

_COMMAND = ("sudo", "-n", "jetson_clocks")


def lock(stored: Path) -> str:
    """Set the clocks to the highest the power mode allows; say `locked`, or `as-is: why not`."""
    try:
        _run("--store", str(stored))
        _run()
    except AgentError as error:
        return f"as-is: {error.message}"
    return "locked"


def restore(stored: Path) -> bool:
    """Put back what was before; False where there was nothing to put back. AgentError E_SUDO."""
    if not stored.exists():
        return False
    _run("--restore", str(stored))
    stored.unlink()
    return True


def _run(*arguments: str) -> None:
    # jetson_clocks asks before it overwrites a file: it gets no answer, and a file of its own.
    try:
        done = subprocess.run(
            [*_COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentError("E_SUDO", f"{' '.join(_COMMAND)}: {error}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        raise AgentError("E_SUDO", f"{' '.join(_COMMAND)}: {lines[-1]}: allow it in sudoers, or set clocks = as-is")
