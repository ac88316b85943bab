"""How the agent starts itself: through the prefix the device names (an emulator, a container's command), not around it.

Under an emulator `sys.executable` is a file of another processor, which the kernel cannot start.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

VARIABLE = "AFPKD_PYTHON"
"""Holds the prefix for what a job's work starts in turn; set by the supervisor alone."""


def command_from(python: Sequence[str]) -> list[str]:
    """Give the words that start a Python like this one from here.

    `python` itself, unless its first word cannot be found: inside of a container there is no command that enters it,
    and none is needed.
    """
    return list(python) if python and shutil.which(python[0]) else [sys.executable]


def command() -> list[str]:
    """The same where the job's prefix is not at hand."""
    return command_from(json.loads(os.environ.get(VARIABLE, "[]")))


def environment(python: Sequence[str]) -> dict[str, str]:
    """What a child needs in its environment so that `command` gives it the same prefix."""
    return {**os.environ, VARIABLE: json.dumps(list(python))}
