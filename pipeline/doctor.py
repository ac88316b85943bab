"""What is wrong with this machine, and how to mend it: findings, red where the main job cannot run.

The main job is `make distill export profile` with the default recipe on a CPU. Each check imports what it needs only
when it runs, and one that fails itself is a finding too: the doctor speaks where half of the packages are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from afpkd.errors import UserError
from pipeline.disk import is_full


class Level(StrEnum):
    """How bad it is."""

    ok = "ok"
    warn = "warn"
    """Yellow: some jobs cannot run, or something waits for a decision."""
    bad = "bad"
    """Red: the main job cannot run."""


class Finding(NamedTuple):
    """One line of the doctor; `mend` says what to do about it, and is empty where nothing is to be done."""

    topic: str
    level: Level
    found: str
    mend: str = ""


Check = Callable[[], Iterable[Finding]]


def ok(topic: str, found: str) -> Finding:
    """Nothing is to be done."""
    return Finding(topic, Level.ok, found)


def warn(topic: str, found: str, mend: str) -> Finding:
    """Some jobs need it."""
    return Finding(topic, Level.warn, found, mend)


def bad(topic: str, found: str, mend: str) -> Finding:
    """The main job needs it."""
    return Finding(topic, Level.bad, found, mend)


def diagnose(runs: Path, *, probe: bool = False) -> list[Finding]:
    """Look at everything that a run needs. probe: reach the devices of devices.toml, which costs them time."""
    from pipeline import doctor_machine, doctor_packages, doctor_places

    checks: dict[str, Check] = {
        "Python": doctor_packages.python,
        "packages": doctor_packages.packages,
        "imports": doctor_packages.imports,
        "recipe": doctor_places.default_recipe,
        "GPU": doctor_machine.gpu,
        "TensorRT": doctor_machine.tensorrt,
        "ssh": doctor_machine.ssh,
        "disk": lambda: doctor_machine.disk(runs),
        "memory": doctor_machine.memory,
        "data": doctor_places.data_sets,
        "devices": lambda: doctor_places.devices(probe),
        "runs": lambda: doctor_places.unfinished(runs),
    }
    return [finding for topic, check in checks.items() for finding in _findings(topic, check)]


def can_run(findings: Sequence[Finding]) -> bool:
    """Whether the main job can."""
    return all(finding.level is not Level.bad for finding in findings)


_NOT_NEEDED = ("GPU", "TensorRT", "ssh", "data", "devices", "runs")
"""What the main job does without."""


def _findings(topic: str, check: Check) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())  # what was found before a fault stays
    except UserError as error:
        found.append(bad(topic, str(error), "mend what the line says"))
    except Exception as error:  # a broken installation fails in any way it likes
        cause = (str(error).strip() or "no reason given").splitlines()[0]
        no_room = is_full(error) or "No usable temporary directory" in cause  # tempfile's words
        mend = "free some room, or name another TMPDIR" if no_room else "make clean setup"
        verdict = warn if topic in _NOT_NEEDED else bad
        found.append(verdict(topic, f"cannot be looked at: {type(error).__name__}: {cause}", mend))
    return found
