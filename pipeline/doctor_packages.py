"""The doctor on Python and its packages: those that the main job needs, those that are locked, those that crash."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from afpkd.record import Json
from pipeline.doctor import Finding, bad, ok, warn

OURS = "afpkd-edge"
LOCK = Path(__file__).parent.parent / "requirements.lock"
OLDEST = (3, 11)
ANEW = "make clean setup"
_MOST_NAMED = 6

_IMPORTED = (
    *("numpy", "scipy", "onnx", "onnxruntime", "matplotlib", "snakemake"),
    *("torch", "torchvision", "onnxscript", "safetensors", "fvcore"),
)
"""Packages of the main job that bring compiled code or fit only one another's versions."""

_PROBE = """
import importlib, json, sys
out = open(sys.argv[1], "a", buffering=1)
for name in sys.argv[2:]:
    print(json.dumps({"name": name}), file=out)
    importlib.import_module(name)
import torch
cuda = torch.cuda.is_available()
facts = {"cuda": cuda, "built_for": torch.version.cuda, "gpu": torch.cuda.get_device_name(0) if cuda else None}
print(json.dumps({"torch": torch.__version__, **facts}), file=out)
"""


def python() -> Iterator[Finding]:
    """Is this Python new enough?"""
    version, wanted = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, OLDEST))
    if sys.version_info < OLDEST:
        yield bad("Python", f"{version}: {wanted} or newer is needed", f"make {ANEW[5:]} PYTHON=python{wanted}")
    else:
        yield ok("Python", f"{version} ({sys.executable})")


def packages() -> Iterator[Finding]:
    """What is missing, too old, or another version than the locked one."""
    missing, refused = _unmet()
    if missing:
        yield bad("packages", f"missing: {_named(sorted(missing))}", ANEW)
    if refused:
        yield bad("packages", f"of a version that does not do: {_named(refused)}", ANEW)
    if not LOCK.is_file():
        yield warn("packages", f"no {LOCK.name} beside the program to compare with", "run it from its source folder")
        return
    pins = _pins(LOCK.read_text(encoding="utf-8"))
    installed = {name: version for name in pins if (version := _version(name)) is not None}
    others = [
        f"{name} {version} (locked: {pins[name]})" for name, version in installed.items() if version != pins[name]
    ]
    absent = [name for name in pins if name not in installed and name not in missing]
    if others:
        yield warn("packages", f"other versions than those that were tested: {_named(others)}", ANEW)
    if absent:
        yield warn("packages", f"missing, for some jobs or for developers: {_named(absent)}", ANEW)
    if not (missing or refused or others or absent):
        yield ok("packages", f"all {len(pins)} of {LOCK.name}, in the locked versions")


def imports() -> Iterator[Finding]:
    """Can they be imported? In a process of its own, since a broken one may crash."""
    facts = imported()
    if "fault" in facts:
        yield bad("imports", f"{facts['name']}: {facts['fault']}", ANEW)
    else:
        yield ok("imports", f"torch {facts['torch']} and what else is compiled")


@functools.cache
def imported() -> Json:
    """Import `_IMPORTED`; give `torch`, `cuda`, `built_for`, `gpu`, or the `name` that failed and its `fault`."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        command = [sys.executable, "-c", _PROBE, str(told), *_IMPORTED]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)
        except subprocess.TimeoutExpired:
            return {**_last(told), "fault": "does not come back within 300 s"}
        found = _last(told)
    if done.returncode == 0:
        return found
    lines = done.stderr.strip().splitlines()
    if done.returncode < 0:
        return {**found, "fault": f"died of {signal.Signals(-done.returncode).name} while it was imported"}
    return {**found, "fault": lines[-1] if lines else f"exit code {done.returncode}"}


def _last(told: Path) -> Json:
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    found: Json = json.loads(lines[-1]) if lines else {"name": "Python"}
    return found


def _unmet() -> tuple[set[str], list[str]]:
    """Of all that the base and the extra `train` require, what is missing, and what is too old or too new."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    missing: set[str] = set()
    refused: dict[str, str] = {}
    waiting, asked = [Requirement(f"{OURS}[train]")], set[tuple[str, str]]()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        version = _version(name)
        if version is None:
            missing.add(name)
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            refused[name] = f"{name} {version} ({wanted.specifier} is needed)"
        new = {extra for extra in ("", *wanted.extras) if (name, extra) not in asked}
        asked |= {(name, extra) for extra in new}
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            marker = requirement.marker
            if any(marker is None or marker.evaluate({"extra": extra}) for extra in new):
                waiting.append(requirement)
    return missing, sorted(refused.values())


def _pins(lock: str) -> dict[str, str]:
    """The locked version of each package that is meant for this machine."""
    from packaging.markers import Marker

    found = {}
    for name, version, marker in re.findall(
        r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)(?: ; ([^\\\n]+))?", lock, re.MULTILINE
    ):
        if not marker or Marker(marker.strip()).evaluate():
            found[name] = version
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
