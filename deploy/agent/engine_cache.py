"""Engines built before: `<key>.engine` and `<key>.json`, the record of what it was built from and where.

The key is the hash of all an engine depends on. The record is checked before the engine is touched: deserialising a
foreign one may end the process. Engines never travel: they are built on the device that runs them.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

_SAME_FILE = ("onnx_sha256", "options")


class EngineCache:
    """The engines in `folder`. `identity`: all an engine depends on, plain JSON (see `ready_engine`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan_path(self, identity: Json) -> Path:
        """Where the engine of this identity lies, or will."""
        return self.folder / f"{key_of(identity)}.engine"

    def missing(self, identity: Json) -> str | None:
        """Say why the engine must be built; None where it is there and its bytes are those of its record."""
        plan = self.plan_path(identity)
        record = plan.with_suffix(".json")
        if not record.exists():
            return self._why(identity)
        document = _read(record)
        if document is None or document.get("identity") != identity:
            return f"{record.name} is not a record of this engine"
        try:
            data = plan.read_bytes()
        except OSError as error:
            return f"{plan.name}: {error.strerror}"
        same = document.get("size_bytes") == len(data) and document.get("sha256") == _sha256(data)
        return None if same else f"the bytes of {plan.name} are not those of its record"

    def record(self, identity: Json) -> Json:
        """What was recorded of an engine that is not missing; it is used now, and so the last to be dropped."""
        plan = self.plan_path(identity)
        for path in (plan, plan.with_suffix(".json")):
            os.utime(str(path))
        document: Json = json.loads(plan.with_suffix(".json").read_text(encoding="utf-8"))
        return document

    def scratch_path(self, identity: Json) -> Path:
        """Where to build the engine of this identity; only this process writes there. E_CACHE: no such folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            told = "make it writable, or name another: a board's workdir, XDG_CACHE_HOME for this machine or by hand"
            message = f"{self.folder}: {error.strerror}: engines cannot be kept there: {told}"
            raise AgentError("E_CACHE", message) from None
        return self.plan_path(identity).with_suffix(f".{os.getpid()}.new")

    def add(self, identity: Json, built: Json) -> None:
        """Take in what lies at the scratch path: engine first, its record last, each at once."""
        plan, scratch = self.plan_path(identity), self.scratch_path(identity)
        data = scratch.read_bytes()
        document = {"identity": identity, "size_bytes": len(data), "sha256": _sha256(data), "built": built}
        scratch.replace(plan)
        scratch.write_text(json.dumps(document, indent=1), encoding="utf-8")
        scratch.replace(plan.with_suffix(".json"))

    def _why(self, identity: Json) -> str:
        """Name what changed since the same file was last built with the same options."""
        for other in self._records():
            if all(other.get(key) == identity.get(key) for key in _SAME_FILE):
                return "; ".join(sorted(_differences(other, identity)))
        return "never built here"

    def _records(self) -> Iterator[Json]:
        """The identities of all records, the newest first."""
        paths = self.folder.glob("*.json") if self.folder.is_dir() else ()
        for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
            document = _read(path)
            if document is not None and isinstance(document.get("identity"), dict):
                yield document["identity"]


def default_folder() -> Path:
    """The user's cache: $XDG_CACHE_HOME/afpkd/engines, or under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "afpkd" / "engines"


def key_of(identity: Json) -> str:
    """Name the files of the engine that has this identity."""
    return _sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode())[:32]


def _differences(old: Json, new: Json, name: str = "") -> Iterator[str]:
    for key in old.keys() | new.keys():
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{name}{key} ")
        elif was != now:
            yield f"{name}{key} was {was}, is {now}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> Json | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
