"""The board's clocks and power mode, for those who ask for it: set while a job measures, put back whatever happens.

`jetson_clocks` and `nvpmodel` need root; `sudo -n` is asked and never a password. What was before lies in a file, so
that after a crash the next contact can put it back. Never run on a Jetson by us.
"""

from __future__ import annotations

import re
import subprocess
import threading
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
_SECONDS = 60
_TRY = "try it on the board, or set clocks = as-is"


def apply(policy: str, folder: Path) -> str:
    """Do what a job asks: `as-is`, `locked`, or `mode:N` (power mode N); say what became of it, `as-is: why` else.

    AgentError E_SUDO, E_POWER_MODE where power mode N cannot be had: in another one nothing is worth measuring.
    """
    if policy == "locked":
        return lock(folder / STORED)
    if policy.startswith("mode:"):
        return set_mode(policy.partition(":")[2], folder / STORED_MODE)
    try:
        restore_mode(folder / STORED_MODE)  # of an earlier job
    except AgentError as error:
        return f"as-is: the power mode of an earlier job is still set: {error.message}"
    return "as-is"


def put_back(folder: Path) -> bool:
    """Put back all that was changed; False where nothing was. AgentError E_SUDO, E_CLOCKS, E_POWER_MODE."""
    restored = restore(folder / STORED)
    return restore_mode(folder / STORED_MODE) or restored


def put_back_before(policy: str, folder: Path) -> None:
    """Put back what an earlier job left changed, before one that asks for `policy` begins. AgentError as `put_back`.

    A power mode that does not come back stops `locked` alone: with the others `apply` says which one there is.
    """
    if policy == "locked":
        put_back(folder)
    else:
        restore(folder / STORED)


def left_changed(folder: Path) -> bool:
    """Whether something was not put back: a crash kept it from that, or a power mode that needs a reboot."""
    return (folder / STORED).exists() or (folder / STORED_MODE).exists()


def set_mode(number: str, stored: Path) -> str:
    """Set power mode `number`; say `mode:number`. AgentError E_SUDO, E_POWER_MODE."""
    before = _mode()
    if before is None:
        raise AgentError("E_POWER_MODE", "this machine has no power modes (nvpmodel): set clocks = as-is")
    if before == number:
        return f"mode:{number}"
    if not stored.exists():  # what a crash left there is older, and what its user had
        stored.write_text(before)
    try:
        _switch(number)
    finally:
        if stored.read_text() == _mode():
            stored.unlink()
    return f"mode:{number}"


def restore_mode(stored: Path) -> bool:
    """Put back the power mode of before; False where there was nothing to put back. AgentError E_SUDO, E_POWER_MODE.

    What was before stays noted until the board is in it: some boards go up at once, and down with a reboot alone.
    """
    if not stored.exists():
        return False
    before = stored.read_text()
    try:
        if _mode() != before:
            _switch(before)
    except AgentError as error:
        if error.code == "E_SUDO":
            raise
        command = f"`sudo nvpmodel -m {before}` on the board, answer yes"
        raise AgentError("E_POWER_MODE", f"power mode {before} comes back only with a reboot: {command}") from None
    stored.unlink()
    return True


def _switch(number: str) -> None:
    """Ask for a power mode. AgentError E_SUDO, E_POWER_MODE.

    Some need a reboot, which `nvpmodel` offers and nobody here accepts; its exit code is 0 or not then: what counts is
    the mode afterwards.
    """
    told = f"it may need a reboot: `sudo nvpmodel -m {number}` on the board, then measure with clocks = as-is"
    try:
        _run(number, command=_MODE_COMMAND)
    except AgentError as error:
        if error.code == "E_SUDO":
            raise
        told = error.message
    if _mode() != number:
        raise AgentError("E_POWER_MODE", f"power mode {number} was not taken over: {told}")


def _mode() -> str | None:
    """The number of the power mode, without the zeros before it; None where there is none."""
    found = re.search(r"pmode:(\d+)", machine.power_mode() or "")
    return str(int(found[1])) if found else None


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
        process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise AgentError("E_SUDO", f"{told}: {error}: {_ALLOW}") from None
    # It is root's: we may not end it, so that whoever waits for its end waits for ever, which a thread may.
    said: list[tuple[bytes, bytes]] = []
    waiting = threading.Thread(target=lambda: said.append(process.communicate()), daemon=True)
    waiting.start()
    waiting.join(_SECONDS)
    if not said:
        raise AgentError("E_CLOCKS", f"{told}: no end after {_SECONDS:g} s: {_TRY}")
    output, errors = said[0]
    wrong = re.search(rb"^Error\b.*", output + b"\n" + errors, re.MULTILINE)  # after which jetson_clocks may exit 0
    if process.returncode or wrong:
        line = _last_line(wrong[0] if wrong else errors) or _last_line(output) or "it failed"
        if line.startswith(_OF_SUDO):
            raise AgentError("E_SUDO", f"{told}: {line}: {_ALLOW}")
        raise AgentError("E_CLOCKS", f"{told}: {line}: {_TRY}")


def _last_line(text: bytes) -> str:
    return text.decode(errors="replace").strip().rpartition("\n")[2].strip()
