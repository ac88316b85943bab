"""Files over a pipe, before the agent is there: a program that is sent to the device's interpreter as text.

stdin: one line of JSON (the request), then the file's bytes. stdout: a line that begins with the request's `mark` (a
login shell may print before it) and goes on in JSON, then the file's bytes. Standard library of Python 3.6, imports
nothing of ours: this must start where the agent cannot, to say why.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict  # noqa: UP035 (evaluated by the Python 3.6 of a JetPack 4, which shall be told)

_BLOCK = 1 << 20
_HEADROOM = 16 << 20
"""Bytes that stay free on the device's disk."""

_Json = Dict[str, Any]  # noqa: UP006 (see above)


class _RefusedError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def serve() -> None:
    """Answer one request."""
    request = json.loads(sys.stdin.buffer.readline().decode())
    try:
        answer = _OPERATIONS[request["operation"]](_work_folder(request["workdir"]), request)
    except _RefusedError as error:
        answer = {"error": {"code": error.code, "message": str(error)}}
    except OSError as error:
        where = error.filename or request["workdir"]
        answer = {"error": {"code": "E_FILE", "message": f"{where}: {error.strerror}"}}
    path = answer.pop("path", None)
    sys.stdout.buffer.write((request["mark"] + json.dumps(answer) + "\n").encode())
    if path is not None:
        with path.open("rb") as file:
            _copied(file, sys.stdout.buffer, answer["size"])
    sys.stdout.buffer.flush()


def _work_folder(name: str) -> Path:
    """Make the work folder, relative to the home, for its owner alone."""
    expanded = os.path.expanduser(name)  # noqa: PTH111 (pathlib's raises on the home of nobody)
    work = Path(os.path.normpath(str(Path.home() / expanded)))
    try:
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(work)):
            pass
    except OSError as error:
        message = f"cannot write in {work}: {error.strerror}: name another workdir for the device in devices.toml"
        raise _RefusedError("E_WORKDIR", message) from None
    return work


def _hello(work: Path, request: _Json) -> _Json:
    """Say what is here: interpreter, boot, clock, and which agent."""
    agent = work / request["agent"]
    return {
        "workdir": str(work),
        "python": list(sys.version_info[:3]),
        "agent_sha256": _sha256_of(agent) if agent.is_file() else None,
        "boot_id": _boot_id(),
        "time_s": time.time(),
    }


def _put(work: Path, request: _Json) -> _Json:
    """Take `size` bytes; they get their name once their hash is the one announced, and never before."""
    name, size, path = request["name"], request["size"], _inside(work, request["name"])
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk = os.statvfs(str(path.parent))
    free = disk.f_bavail * disk.f_frsize
    spare = 0 if name.endswith(".pyz") else _HEADROOM  # without an agent nobody can free anything
    if free < size + spare:
        numbers = f"{size / 1e6:.1f} MB and {spare / 1e6:.0f} MB to spare, {free / 1e6:.1f} MB are free"
        raise _RefusedError("E_DISK", f"{name} needs {numbers}: run `afpkd devices gc`, or free some disk there")
    handle, temporary = tempfile.mkstemp(dir=str(path.parent), prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file:
            actual = _copied(sys.stdin.buffer, file, size)
            file.flush()
            os.fsync(file.fileno())
        _require_same(name, actual, request["sha256"])
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink()
        if isinstance(error, OSError):
            raise _RefusedError("E_DISK", f"{name}: {error.strerror}: free some disk there") from None
        raise
    return {"sha256": actual}


def _require_same(name: str, actual: str, announced: str) -> None:
    if actual != announced:
        raise _RefusedError("E_CORRUPT", f"{name}: other bytes arrived than were sent: send it again")


def _get(work: Path, request: _Json) -> _Json:
    path = _inside(work, request["name"])
    return {"size": path.stat().st_size, "sha256": _sha256_of(path), "path": path}


def _copied(source: BinaryIO, destination: BinaryIO, size: int) -> str:
    """Copy `size` bytes, or as many as come, and hash them."""
    sha256 = hashlib.sha256()
    while size > 0:
        block = source.read(min(size, _BLOCK))
        if not block:
            break
        sha256.update(block)
        destination.write(block)
        size -= len(block)
    return sha256.hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as source, Path(os.devnull).open("wb") as sink:
        return _copied(source, sink, path.stat().st_size)


def _inside(work: Path, name: str) -> Path:
    path = Path(os.path.normpath(str(work / name)))
    if work not in path.parents:
        raise _RefusedError("E_NAME", f"{name}: outside the work folder")
    return path


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


_OPERATIONS = {"hello": _hello, "put": _put, "get": _get}
