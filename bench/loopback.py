"""A real sshd on loopback, with keys and a home of its own: machines to reach over ssh, for benches and tests."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.devices import Device, find_device

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@dataclass
class Board:
    """An sshd and the files around it."""

    folder: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    """More lines of sshd_config."""
    addresses: int = 1
    """How many machines it seems to be: 127.0.0.1 on; each has a line of its own."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @classmethod
    def made(cls, folder: Path, addresses: int = 1) -> Board:
        """Lay out keys, configurations and a devices.toml in `folder`; start nothing yet."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd drops its rights
        board = cls(folder, free_port(), addresses=addresses)
        board.home.mkdir()
        board.new_host_key()
        keygen("-t", "ed25519", "-f", folder / "user_key")
        board.trust()
        board.configure()
        board.describe()
        return board

    @property
    def home(self) -> Path:
        """Of whoever logs in."""
        return self.folder / "home"

    @property
    def work(self) -> Path:
        """The work folder of the device."""
        return self.home / ".cache" / "afpkd-device"

    @property
    def known_hosts(self) -> Path:
        """The client's."""
        return self.folder / "known_hosts"

    def start(self) -> None:
        """Start the server and wait until it listens."""
        lines = {
            "Port": str(self.port),
            "ListenAddress": "\nListenAddress ".join(f"127.0.0.{number + 1}" for number in range(self.addresses)),
            "HostKey": str(self.folder / "host_key"),
            "AuthorizedKeysFile": str(self.folder / "user_key.pub"),
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "MaxStartups": "100",
            "SetEnv": f"HOME={self.home}",
            **self.settings,
        }
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-f", str(config), "-D", "-e"], stderr=log)
        self.starts += 1
        wait_until(self._listens, "sshd listens")

    def stop(self) -> None:
        """End the server and every line to it."""
        if self.process is not None:
            for session in self.sessions():
                with suppress(ProcessLookupError):
                    os.kill(session, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self.process = None
            wait_until(lambda: not self._answers(), "the port is free")

    def sessions(self) -> list[int]:
        """The processes that sshd made for connections: its children and theirs that are sshd too."""
        assert self.process is not None
        found: list[int] = []
        parents = [self.process.pid]
        while parents:
            children = [child for parent in parents for child in children_of(parent) if "sshd" in command_of(child)]
            found, parents = found + children, children
        return found

    def new_host_key(self) -> None:
        """Give it another host key."""
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink(missing_ok=True)
        keygen("-t", "ed25519", "-f", self.folder / "host_key")

    def trust(self) -> None:
        """Let the client know the host key."""
        key = (self.folder / "host_key.pub").read_text().split()
        hosts = ",".join(f"[127.0.0.{number + 1}]:{self.port}" for number in range(self.addresses))
        self.known_hosts.write_text(f"{hosts} {key[0]} {key[1]}\n")

    def configure(self, **changes: str) -> None:
        """Write the client's configuration: aliases `lo`, `lo1`, …, keys and known hosts of this folder alone."""
        lines = {
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "user_key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            **changes,
        }
        text = "".join(f"  {key} {value}\n" for key, value in lines.items())
        hosts = [
            f"Host lo{number or ''}\n  HostName {changes.get('HostName', f'127.0.0.{number + 1}')}\n{text}"
            for number in range(self.addresses)
        ]
        (self.folder / "ssh_config").write_text("".join(hosts))

    def describe(self, **changes: object) -> None:
        """Write devices.toml: `board`, and a `board<n>` for each further address, with a folder of its own."""
        keys = {"host": "lo", "python": sys.executable, "ssh_config": str(self.folder / "ssh_config"), **changes}
        tables = [_table("board", keys)]
        for number in range(1, self.addresses):
            tables.append(_table(f"board{number}", {**keys, "host": f"lo{number}", "workdir": f"board{number}"}))
        (self.folder / "devices.toml").write_text("\n".join(tables))

    def device(self) -> Device:
        """The device `board`, where AFPKD_DEVICES names our devices.toml."""
        return find_device("board")

    def _listens(self) -> bool:
        """By its own word: a dying predecessor may answer on the port for a moment."""
        assert self.process is not None
        log = (self.folder / "sshd.log").read_text()
        assert self.process.poll() is None, log
        return log.count("Server listening on") == self.starts * self.addresses

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


AT_START = "at_start.py"
"""A file that a Python runs when it starts (no `sitecustomize`: Debian's Python has one, which hides all others)."""


def python_with(folder: Path, name: str, text: str) -> str:
    """Another Python in `folder`: this one's packages, and a file of its own among them."""
    venv.create(folder, system_site_packages=True, symlinks=True)
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (packages / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (packages / name).write_text(text)
    if name == AT_START:
        (packages / "at_start.pth").write_text("import at_start\n")
    return str(folder / "bin" / "python")


def _table(name: str, keys: Mapping[str, object]) -> str:
    lines = [f"{key} = {value!r}" if isinstance(value, str) else f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([f"[{name}]", *lines, ""])


def keygen(*arguments: str | Path) -> None:
    """Make a key without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-N", "", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = 30.0, process: subprocess.Popen[str] | None = None
) -> None:
    """Look until the condition holds; AssertionError naming `what` where it does not in time, or `process` ended."""
    until = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"it ended before: {what}"
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def children_of(parent: int) -> list[int]:
    """Give the processes whose parent it is."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def command_of(process: int) -> str:
    """Give a process's words; nothing where it has gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
