"""The board's clocks and power mode, for those who ask for it: set while a job measures, put back whatever happens.

`jetson_clocks` and `nvpmodel` need root; `sudo -n` is asked and never a password. What was before lies in a file, so
that after a crash the next contact can put it back. Never run on a Jetson by us.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from . import machine
from .errors import AgentError

STORED = "clocks.stored"
"""In the work folder: what `jetson_clocks --store` wrote."""

STORED_MODE = "power_mode.stored"
"""In the work folder: the number of the power mode that was set before."""

_COMMAND = ("sudo", "-n", "jetson_clocks")
_MODE_COMMAND = ("sudo", "-n", "nvpmodel", "-m")

_OF_SUDO = ("sudo:", "Sorry, user ")
"""How a line of sudo's own begins."""

_ALLOW = "allow it in sudoers, or set clocks = as-is"
_TRY = "try it on the board, or set clocks = as-is"


def apply(policy: str, folder: Path) -> str:
    """Do what a job asks: `as-is`, `locked`, or `mode:N` (power mode N); say what became of it, `as-is: why` else."""
    if policy == "locked":
        return lock(folder / STORED)
    if policy.startswith("mode:"):
        return set_mode(int(policy.partition(":")[2]), folder / STORED_MODE)
    return "as-is"


def put_back(folder: Path) -> bool:
    """Put back all that was changed; False where nothing was. AgentError E_SUDO, E_CLOCKS."""
    restored = restore(folder / STORED)
    return restore_mode(folder / STORED_MODE) or restored


def left_changed(folder: Path) -> bool:
    """Whether a crash kept something from being put back."""
    return (folder / STORED).exists() or (folder / STORED_MODE).exists()


def set_mode(number: int, stored: Path) -> str:
    """Set power mode `number`; say `mode:number`, or `as-is: why not`.

    Some modes need a reboot, which `nvpmodel` offers and nobody here accepts: what counts is the mode afterwards.
    """
    before = _mode()
    if before is None:
        return "as-is: this machine has no power modes (nvpmodel)"
    if before == number:
        return f"mode:{number}"
    if not stored.exists():  # what a crash left there is older, and what its user had
        stored.write_text(str(before))
    try:
        _run(str(number), command=_MODE_COMMAND)
    except AgentError as error:
        stored.unlink()
        return f"as-is: {error.message}"
    if _mode() != number:
        stored.unlink()
        return f"as-is: power mode {number} was not taken over: it may need a reboot"
    return f"mode:{number}"


def restore_mode(stored: Path) -> bool:
    """Put back the power mode of before; False where there was nothing to put back. AgentError E_SUDO, E_CLOCKS."""
    if not stored.exists():
        return False
    _run(stored.read_text(), command=_MODE_COMMAND)
    stored.unlink()
    return True


def _mode() -> int | None:
    found = re.search(r"pmode:(\d+)", machine.power_mode() or "")
    return int(found[1]) if found else None


def lock(stored: Path) -> str:
    """Set the clocks to the highest the power mode allows; say `locked`, or `as-is: why not`."""
    try:
        _run("--store", str(stored))
        _run()
    except AgentError as error:
        return f"as-is: {error.message}"
    return "locked"


def restore(stored: Path) -> bool:
    """Put back what was before; False where there was nothing to put back. AgentError E_SUDO, E_CLOCKS."""
    if not stored.exists():
        return False
    _run("--restore", str(stored))
    stored.unlink()
    return True


def _run(*arguments: str, command: tuple[str, ...] = _COMMAND) -> None:
    """AgentError: E_SUDO where sudo refuses, E_CLOCKS where NVIDIA's tool does, which says why on either stream."""
    # jetson_clocks asks before it overwrites a file: it gets no answer, and a file of its own.
    told = " ".join(command[:3])
    try:
        done = subprocess.run(
            [*command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except OSError as error:
        raise AgentError("E_SUDO", f"{told}: {error}: {_ALLOW}") from None
    except subprocess.TimeoutExpired as error:
        raise AgentError("E_CLOCKS", f"{told}: no end after {error.timeout:g} s: {_TRY}") from None
    if done.returncode:
        line = _last_line(done.stderr) or _last_line(done.stdout) or "it failed"
        if line.startswith(_OF_SUDO):
            raise AgentError("E_SUDO", f"{told}: {line}: {_ALLOW}")
        raise AgentError("E_CLOCKS", f"{told}: {line}: {_TRY}")


def _last_line(text: bytes) -> str:
    return text.decode(errors="replace").strip().rpartition("\n")[2].strip()
