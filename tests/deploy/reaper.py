"""Ends what tests started and left: jobs outlive their connection by design, and a killed test run by accident.

reaper.py FOLDER: waits until its stdin ends, as it does when the test run dies of whatever, then ends what works in or
for FOLDER.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def start_reaper(folder: Path) -> subprocess.Popen[bytes]:
    """Watch over `folder` for as long as this process lives, or holds the reaper's stdin open."""
    command = [sys.executable, "-I", __file__, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def end_all(folder: Path) -> None:
    """Kill every process whose working directory, arguments or environment lie in `folder`, until there is none."""
    while found := [process for process in _processes() if _belongs(process, f"{folder}/".encode())]:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if int(path.name) != os.getpid()]


def _belongs(process: int, folder: bytes) -> bool:
    """Not this program's own watch, nor what is dead already and waits to be looked at."""
    path = Path("/proc") / str(process)
    try:
        if (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        words = (path / "cmdline").read_bytes()
        inside = os.fsencode((path / "cwd").readlink()) + b"/"
        return __file__.encode() not in words and folder in b"\0".join([inside, words, (path / "environ").read_bytes()])
    except OSError:
        return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_all(Path(sys.argv[1]))
