"""A machine that can be measured: the boundary to the outside world, three methods wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished command: exit code (negative: killed by that signal) and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Target(Protocol):
    """A machine with a work folder of ours; every name is relative to that folder, and stays inside it."""

    @property
    def name(self) -> str:
        """The device's name, for messages."""

    @property
    def python(self) -> str:
        """The interpreter the agent runs under."""

    def run(self, command: Sequence[str], stdin: str) -> Completed:
        """Run `command` in the work folder (no shell), give it `stdin`, wait for its end."""

    def put(self, source: Path, name: str) -> None:
        """Copy the file `source` to the machine as `name`."""

    def get(self, name: str, destination: Path) -> None:
        """Copy the machine's file `name` to `destination`."""
