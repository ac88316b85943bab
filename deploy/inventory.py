"""`devices.toml` -> typed devices. Looked for where `AFPKD_DEVICES` says, else in the working directory.

A table a device; an unknown key, a wrong type or a host that ssh would misread is one line that names file and key.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

from afpkd.errors import UserError
from afpkd.names import nearest, unknown
from afpkd.record import Json
from afpkd.toml_file import read_toml
from deploy.agent.runtimes import RUNTIMES

VARIABLE = "AFPKD_DEVICES"
MAY_BE_TENSORRT = ("auto", "tensorrt")
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True)
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Entry:
    """One table of `devices.toml`."""

    host: str
    """An alias of ~/.ssh/config, or `[user@]host[:port]` (an IPv6 address in brackets)."""
    python: str | tuple[str, ...] = "/usr/bin/python3"
    """The interpreter there; a list where arguments come before the agent's (an emulator, a container)."""
    workdir: str = ".cache/afpkd-device"
    """The only folder there that is written to; relative to the home."""
    runtime: str = "auto"
    """`auto`: TensorRT where the device has it, else ONNX Runtime."""
    clocks: Literal["as-is", "locked", "sweep"] = "as-is"
    """`locked`: nvpmodel's clocks at their highest while it measures (needs `sudo -n jetson_clocks`), then restored.
    `sweep`: measured as it is and once in each other power mode (needs `sudo -n nvpmodel`), then restored; modes that
    need a reboot are left out."""
    use_dla: bool = False
    """Layers on a deep-learning accelerator where TensorRT can; never run by us."""
    dla_core: int = 0
    """Which of its accelerators, where there are two."""
    workspace_mb: int | None = None
    """The most scratch memory that TensorRT may take while it builds; by default all there is."""
    max_seconds: float = 3600.0
    """A job that takes longer is ended by the device itself."""
    budget_mb: int = 2048
    """What may stay on the device's disk for next time."""
    ssh_config: str | None = None
    """Another file than ~/.ssh/config; relative to this file."""
    tags: tuple[str, ...] = ()
    """For people."""

    def __post_init__(self) -> None:
        parsed_host(self.host)
        for key, word in (("python", self.command()[0]), ("workdir", self.workdir)):
            if word.startswith("-"):
                raise ValueError(f"{key}: {json.dumps(word)} begins with -")
        for key, word in (*(("python", word) for word in self.command()), ("workdir", self.workdir)):
            if not word.isprintable():
                raise ValueError(f"{key}: {json.dumps(word)} holds control characters")
        if str(Path(self.workdir)) in (".", "~", "/") or ".." in Path(self.workdir).parts:
            raise ValueError(f"workdir: a folder of its own is needed, got {json.dumps(self.workdir)}")
        if self.runtime not in ("auto", *RUNTIMES):
            raise ValueError(f"runtime: {unknown('runtime', self.runtime, ('auto', *RUNTIMES))}")
        for key in ("use_dla", "workspace_mb"):
            if getattr(self, key) and self.runtime not in MAY_BE_TENSORRT:
                raise ValueError(f"{key}: needs runtime = 'tensorrt' or 'auto'")
        if self.dla_core and not self.use_dla:
            raise ValueError("dla_core: needs use_dla = true")
        for key in ("max_seconds", "budget_mb", "workspace_mb"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"{key}: expected more than 0, got {value}")
        if self.dla_core < 0:
            raise ValueError(f"dla_core: expected 0 or more, got {self.dla_core}")

    def command(self) -> Sequence[str]:
        """The interpreter as a list of words; ValueError for none."""
        words = (self.python,) if isinstance(self.python, str) else self.python
        if not words or not all(words):
            raise ValueError("python: expected an interpreter")
        return words


def parsed_host(text: str) -> tuple[str | None, str, int | None]:
    """Split `[user@]host[:port]` into (user, host, port). ValueError: a password, or no plain name."""
    user, _, rest = text.rpartition("@")
    if ":" in user:
        raise ValueError(f"host: no password may be written here (got '{user.split(':')[0]}:…@{rest}'): use a key")
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:%\w+)?)\](?::(\d+))?|([^:@\[\]]+)(?::(\d+))?", rest)
    if not found:
        raise ValueError(f"host: expected an ssh alias or [user@]host[:port], got {json.dumps(text)}")
    host, port = found[1] or found[3], found[2] or found[4]
    for word in filter(None, (user, host)):
        if not re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]*", word):
            raise ValueError(f"host: {json.dumps(word)} is no name of a user or host")
    if port and not 0 < int(port) < 65536:
        raise ValueError(f"host: no such port: {port}")
    return user or None, host, int(port) if port else None


def inventory_path() -> Path:
    """Where the inventory is looked for."""
    return Path(os.environ.get(VARIABLE) or "devices.toml")


def read_inventory(path: Path) -> dict[str, Entry]:
    """Read every device of the file; none where there is no file, unless `AFPKD_DEVICES` names it. UserError."""
    if not path.exists() and VARIABLE in os.environ:
        raise UserError("E_DEVICES_FILE", f"{path}: no such file: {VARIABLE} names it")
    tables = read_toml(path) if path.exists() else {}
    return {name: _entry(path, name, table) for name, table in tables.items()}


def device_name(name: str) -> str:
    """The name, if it can be a board's; UserError."""
    if not re.fullmatch(_NAME, name) or name in ("local", "local-gpu"):
        raise UserError(
            "E_DEVICE_NAME", f"{json.dumps(name)}: letters, digits, . _ - make a device's name, and local is built in"
        )
    return name


def _entry(path: Path, name: str, table: Any) -> Entry:
    try:
        device_name(name)
    except UserError as error:
        raise UserError("E_DEVICES_FILE", f"{path}: {error.message}") from None
    if not isinstance(table, dict):
        raise UserError("E_DEVICES_FILE", f"{path}: {name}: expected a table such as [orin1]")
    try:
        return Entry(**_tuples(table))
    except pydantic.ValidationError as error:
        raise UserError("E_DEVICES_FILE", f"{path}: {_first_problem(name, error)}") from None


def _tuples(table: Json) -> Json:
    """TOML's arrays as the tuples that a frozen record holds; strict decoding would refuse a list."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _first_problem(name: str, error: pydantic.ValidationError) -> str:
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "unexpected_keyword_argument"), problems[0])
    key = ".".join([name, *(str(part) for part in problem["loc"][:1])])
    if problem["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key{nearest(str(problem['loc'][0]), [f.name for f in dataclasses.fields(Entry)])}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}.{message}"
    return f"{key}: {message[0].lower()}{message[1:]}, got {json.dumps(problem['input'], default=str)}"
