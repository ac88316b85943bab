"""A real sshd on loopback, with keys and a home of its own, as the device `board` of a devices.toml."""

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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deploy import deployment, jobs, presets, ssh
from deploy.devices import Device, find_device
from deploy.jobs import Patience, Progress
from deploy.measure import profile_bundle
from tests.deploy.reaper import end_all

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
RELAY = Path(__file__).with_name("relay.py")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@dataclass
class Board:
    """An sshd and the files around it."""

    folder: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    """More lines of sshd_config."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def work(self) -> Path:
        """The work folder of the device."""
        return self.home / ".cache" / "afpkd-device"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def start(self) -> None:
        lines = {
            "Port": str(self.port),
            "ListenAddress": "127.0.0.1",
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
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink(missing_ok=True)
        keygen("-t", "ed25519", "-f", self.folder / "host_key")

    def trust(self) -> None:
        key = (self.folder / "host_key.pub").read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key[0]} {key[1]}\n")

    def configure(self, **changes: str) -> None:
        """Write the client's configuration: alias `lo`, keys and known hosts of the test alone."""
        lines = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "user_key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            **changes,
        }
        text = "".join(f"  {key} {value}\n" for key, value in lines.items())
        (self.folder / "ssh_config").write_text(f"Host lo\n{text}")

    def through_relay(self, *, rate: float = 0, limit: int = 0, times: int = 0) -> None:
        """Let the client go through `relay.py`, which is slow, or drops the line `times` times after `limit` bytes."""
        (self.folder / "drops").write_text(str(times))
        words = [sys.executable, RELAY, self.port, rate, limit, self.folder / "drops"]
        self.configure(ProxyCommand=" ".join(map(str, words)))

    def describe(self, **changes: object) -> None:
        """Write devices.toml."""
        keys = {"host": "lo", "python": sys.executable, "ssh_config": str(self.folder / "ssh_config"), **changes}
        lines = [f"{key} = {value!r}" if isinstance(value, str) else f"{key} = {value}" for key, value in keys.items()]
        (self.folder / "devices.toml").write_text("\n".join(["[board]", *lines, ""]))

    def device(self) -> Device:
        return find_device("board")

    def _listens(self) -> bool:
        """By its own word: a dying predecessor may answer on the port for a moment."""
        assert self.process is not None
        log = (self.folder / "sshd.log").read_text()
        assert self.process.poll() is None, log
        return log.count("Server listening on") == self.starts

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    if not Path(SSHD).exists():
        pytest.skip("no sshd here: install openssh-server (it need not run as a service)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd drops its rights
    made = Board(tmp_path, free_port())
    made.home.mkdir()
    made.new_host_key()
    keygen("-t", "ed25519", "-f", tmp_path / "user_key")
    made.trust()
    made.configure()
    made.describe()
    made.start()
    monkeypatch.setenv("AFPKD_DEVICES", str(tmp_path / "devices.toml"))
    # A dead line shall be seen in seconds here.
    monkeypatch.setattr(ssh, "OPTIONS", {**ssh.OPTIONS, "ServerAliveInterval": "1", "ServerAliveCountMax": "2"})
    yield made
    made.stop()
    end_all(tmp_path)  # jobs go on without their connection


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Retries come at once, and following asks often."""
    patience = Patience(pauses_s=(0.05,), wait_s=1, busy_s=0, line_s=20)
    monkeypatch.setattr(jobs, "Patience", lambda: patience)
    monkeypatch.setattr(deployment, "Patience", lambda: patience)
    yield


def lasting(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the preset `instant` take a while."""
    slow = replace(presets.find_preset("instant"), min_seconds=seconds)
    monkeypatch.setitem(presets._PRESETS, "instant", slow)


def profiled(bundle: Path, out: Path, progress: Progress = lambda *event: None, **changes: Any) -> dict[str, Any]:
    """The stage `profile` of a bundle on the board."""
    asked = {"device": "board", "precision": "fp32", "preset": "instant", "threads": 1, **changes}
    return profile_bundle(bundle, out=out, recipe="tiny", config_digest="0", progress=progress, **asked)


def python_with(folder: Path, name: str, text: str) -> str:
    """Another Python in `folder`: this one's packages, and a file of its own among them."""
    venv.create(folder, system_site_packages=True, symlinks=True)
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (packages / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (packages / name).write_text(text)
    return str(folder / "bin" / "python")


def keygen(*arguments: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-N", "", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def children_of(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
