"""A real pseudo-terminal with a program in it: what it shows, and keys for it."""

from __future__ import annotations

import fcntl
import os
import pty
import selectors
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

CTRL_C = "\x03"
_SECONDS = 400.0  # of a busy machine
# The terminal controls the program, so that Ctrl-C is a signal.
_LAUNCHER = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Runs a command whose stdin, stdout and stderr are a terminal of 110 x 40; ends it with the context."""

    def __init__(self, command: Sequence[str], *, cwd: Path | None = None, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={**kept, "TERM": "xterm-256color", **environment},
        )
        os.close(slave)
        self.text = ""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._master, selectors.EVENT_READ)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._selector.close()
        os.close(self._master)

    def wait_for(self, words: str) -> str:
        """Read until the words are there; give all that was shown so far."""
        deadline = time.monotonic() + _SECONDS
        while words not in self.text:
            assert self._read(deadline), f"it ended without {words!r}: {self.text}"
        return self.text

    def keys(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ended(self) -> int:
        """Read to the end; give the exit code."""
        deadline = time.monotonic() + _SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(10)

    def _read(self, deadline: float) -> bool:
        assert self._selector.select(max(0.0, deadline - time.monotonic())), f"nothing more: {self.text[-500:]}"
        try:
            read = os.read(self._master, 1 << 16)
        except OSError:  # Linux: the other end is closed
            return False
        self.text += read.decode(errors="replace")
        return bool(read)
