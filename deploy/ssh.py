"""A machine behind OpenSSH's own client: the user's configuration, keys, agents and jump hosts work as they do by hand.

The far side's login shell sees fixed words and what `shlex` quoted, nothing else: requests and files travel on stdin.
No passwords: `BatchMode` makes ssh fail where it would ask. One connection is opened and shared (`ControlMaster`).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import secrets
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Timer
from typing import IO

from afpkd.record import Json, private_folder, sha256_of
from deploy.agent import transfer
from deploy.pack import AGENT
from deploy.ssh_failure import line_error, no_ssh
from deploy.target import Completed, DeviceError, LineError

OPTIONS: Mapping[str, str] = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "15",  # a line that is dead at one end is given up after a minute
    "ServerAliveCountMax": "4",
    "ControlMaster": "auto",
    "ControlPersist": "60",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "RequestTTY": "no",
    "RemoteCommand": "none",  # a user's alias may log people into a shell of their own
    "LogLevel": "INFO",  # what went wrong is read from what ssh says
}

_BOOTSTRAP = "import json,sys;exec(json.loads(sys.stdin.buffer.readline().decode()))"
_OLDEST_PYTHON = (3, 8)
_MOST_BYTES = 1 << 30
"""Of a file that is fetched, which is held in memory: beyond any result, and below what would take this machine's."""

_MOST_SAID = 16 << 20
"""Of any other answer: JSON, which takes some forty times its bytes once it is read."""

_MOST_TOLD = 16 << 20  # bytes of stderr, which lie in a file: what ssh says is a line or two
_SSH_FAILED = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where ssh goes: an alias of the user's configuration, or a host with user and port."""

    host: str
    user: str | None = None
    port: int | None = None
    config: Path | None = None
    """Another file than ~/.ssh/config."""
    options: Mapping[str, str] = field(default_factory=dict)
    """On top of `OPTIONS`."""

    @property
    def shown(self) -> str:
        """For people: `user@host:port`."""
        return f"{f'{self.user}@' if self.user else ''}{self.host}{f':{self.port}' if self.port else ''}"

    def arguments(self, extra: Mapping[str, str] | None = None) -> list[str]:
        """ssh's arguments up to and including the host."""
        options = {**OPTIONS, "ControlPath": str(_socket_folder() / "%C"), **self.options, **(extra or {})}
        return [
            *(["-F", str(self.config)] if self.config else []),
            *(part for key, value in options.items() for part in ("-o", f"{key}={value}")),
            *(["-l", self.user] if self.user else []),
            *(["-p", str(self.port)] if self.port else []),
            "--",
            self.host,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """Runs commands in `folder` of the machine at `address`."""

    name: str
    python: Sequence[str]
    address: Address
    folder: str
    """The work folder: absolute, except before the machine was asked for its home."""
    timeout_s: float = 120.0
    """A command that answers nothing for so long has hung: work runs as jobs, and what is not `brief` is told apart."""

    def run(self, command: Sequence[str], stdin: str, *, brief: bool = True) -> Completed:
        """Run `command` in the work folder; LineError where ssh itself fails."""
        far = f"cd -- {shlex.quote(self.folder)} && exec {shlex.join(command)}"
        done = self._ssh(far, stdin.encode(), timeout_s=self.timeout_s if brief else None)
        return Completed(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def put(self, source: Path, name: str) -> None:
        """Send a file: it gets its name there once its hash is right. DeviceError, LineError."""
        facts = {"name": name, "size": source.stat().st_size, "sha256": sha256_of(source)}
        with source.open("rb") as file:
            self.transfer("put", facts, file)

    def get(self, name: str, destination: Path) -> None:
        """Fetch a file and hold it against the hash it had there. DeviceError, LineError."""
        answer, data = self.transfer("get", {"name": name})
        data = data[: answer["size"]]
        if hashlib.sha256(data).hexdigest() != answer["sha256"]:
            raise self._not_whole(name)
        destination.write_bytes(data)

    def transfer(self, operation: str, facts: Json, file: IO[bytes] | None = None) -> tuple[Json, bytes]:
        """Do an operation of `deploy.agent.transfer` there: its answer, and the bytes behind it."""
        mark = secrets.token_hex(16)
        request = {"operation": operation, "mark": mark, "workdir": self.folder, **facts}
        head = f"{json.dumps(_program())}\n{json.dumps(request)}\n".encode()
        # a file takes as long as its line needs; a greeting does not
        timeout_s = self.timeout_s if operation == "hello" else None
        most = _MOST_BYTES if operation == "get" else _MOST_SAID
        done = self._ssh(shlex.join([*self.python, "-I", "-c", _BOOTSTRAP]), head, file, timeout_s, most)
        _, found, rest = done.stdout.partition(mark.encode())
        if not found:
            raise DeviceError(self.name, "E_PYTHON", self._no_python(done))
        line, _, data = rest.partition(b"\n")
        try:
            answer: Json = json.loads(line)
        except ValueError:
            raise self._not_whole(f"the answer to {operation}") from None
        if "error" in answer:
            raise DeviceError(self.name, **answer["error"])
        return answer, data

    def _ssh(
        self,
        command: str,
        head: bytes,
        file: IO[bytes] | None = None,
        timeout_s: float | None = None,
        most: int = _MOST_SAID,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `command` in the far side's shell with `head` and then `file` as its stdin; it may say `most` bytes."""
        arguments = ["ssh", *self.address.arguments(), command]
        # stderr is a file: the shared connection's process keeps a pipe open long after the command ended.
        with tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
            except FileNotFoundError:
                raise no_ssh() from None
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_MOST_TOLD, _MOST_TOLD))
            stdout = _conversed(process, head, file, timeout_s, most)
            stderr.seek(0)
            said = stderr.read()
        if stdout is None:
            self.close()
            message = f"no answer for {timeout_s:g} s: the line or the machine hangs"
            raise LineError(self.name, "E_DROPPED", message, lasting=False)
        if len(stdout) > most or process.returncode == -signal.SIGXFSZ:
            most = most if len(stdout) > most else _MOST_TOLD
            raise DeviceError(self.name, "E_ANSWER", f"its answer has no end: more than {most / 1e6:.0f} MB")
        if process.returncode == _SSH_FAILED or process.returncode < 0:
            raise line_error(self.name, said.decode(errors="replace"))
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, said)

    def close(self) -> None:
        """End the shared connection; the next command opens a new one."""
        arguments = ["ssh", "-O", "exit", *self.address.arguments()]
        subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=10)

    def _not_whole(self, what: str) -> LineError:
        return LineError(self.name, "E_DROPPED", f"{what}: it did not arrive whole: try again", lasting=False)

    def _no_python(self, done: subprocess.CompletedProcess[bytes]) -> str:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        last = f" ({lines[-1]})" if lines else ""
        return f"{shlex.join(self.python)} does not start there{last}: install python3, or set the device's python"


@contextmanager
def ssh_target(
    name: str, python: Sequence[str], address: Address, workdir: str
) -> Iterator[tuple[SshTarget, str | None]]:
    """Reach a machine and make its work folder; also give the hash of the agent there. DeviceError, LineError."""
    first = SshTarget(name=name, python=python, address=address, folder=workdir)
    hello, _ = first.transfer("hello", {"agent": AGENT})
    if tuple(hello["python"]) < _OLDEST_PYTHON:
        version = ".".join(map(str, hello["python"]))
        need = ".".join(map(str, _OLDEST_PYTHON))
        raise DeviceError(name, "E_PYTHON", f"Python {version} is too old, {need} is needed: set the device's python")
    yield SshTarget(name=name, python=python, address=address, folder=hello["workdir"]), hello["agent_sha256"]


def _conversed(
    process: subprocess.Popen[bytes], head: bytes, file: IO[bytes] | None, timeout_s: float | None, most: int
) -> bytes | None:
    """Give the process its stdin, wait for its end, give its stdout; None where it took longer than `timeout_s`.

    A process that says more than `most` bytes is ended, and has said more than that.
    """
    assert process.stdin is not None
    late = Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = Timer(timeout_s, give_up) if timeout_s else None
    with process, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read, process, most)
        try:
            if timer:
                timer.start()
            with suppress(BrokenPipeError), process.stdin:  # it may end early: its answer says why
                process.stdin.write(head)
                for block in iter(partial(file.read, 1 << 20), b"") if file else ():
                    process.stdin.write(block)
            stdout = reading.result()
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            if timer:
                timer.cancel()
    return None if late.is_set() else stdout


def _read(process: subprocess.Popen[bytes], most: int) -> bytes:
    """All that the process says, or the first that is more than `most` bytes: then it is ended."""
    assert process.stdout is not None
    blocks: list[bytes] = []
    for block in iter(partial(process.stdout.read, 1 << 20), b""):
        blocks.append(block)
        if sum(map(len, blocks)) > most:
            process.kill()
            break
    return b"".join(blocks)


def _socket_folder() -> Path:
    """A short path, since a socket's may have 108 bytes; this user's own, since whoever owns it owns the connection."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    short = runtime.is_absolute() and runtime.is_dir() and len(str(runtime)) < 40
    shared = Path("/tmp") / f"afpkd-ssh-{os.getuid()}"  # noqa: S108 (checked next)
    return private_folder(runtime / "afpkd" if short else shared)


def _program() -> str:
    return Path(transfer.__file__).read_text(encoding="utf-8") + "\nserve()\n"
