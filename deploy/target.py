"""A machine that can be measured: the boundary to the outside world, three methods wide; and how it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from afpkd.errors import UserError


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
    def python(self) -> Sequence[str]:
        """The interpreter the agent runs under, with arguments that come before the agent's."""

    def run(self, command: Sequence[str], stdin: str, *, brief: bool = True) -> Completed:
        """Run `command` in the work folder (nothing in it is interpreted by a shell), give it `stdin`, wait for it.

        brief: whether it has hung where it gives no answer for minutes.
        """

    def put(self, source: Path, name: str) -> None:
        """Copy the file `source` to the machine as `name`: whole or not at all."""

    def get(self, name: str, destination: Path) -> None:
        """Copy the machine's file `name` to `destination`."""


class DeviceError(UserError):
    """A failure of one device; one that its agent reports keeps the agent's code."""

    def __init__(self, device: str, code: str, message: str) -> None:
        super().__init__(code, f"device {device}: {message}")


class LineError(DeviceError):
    """The device could not be reached, or the line to it ended. `lasting`: trying again would not help."""

    def __init__(self, device: str, code: str, message: str, *, lasting: bool) -> None:
        super().__init__(device, code, message)
        self.lasting = lasting
