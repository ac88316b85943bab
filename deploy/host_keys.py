"""First contact: fetch a machine's host key through ssh itself, compare it with what is known, and add it when told.

Through ssh, since then aliases, ports and jump hosts are those of every later connection. Nothing is sent but the key
exchange: no login is tried. A key that differs from a known one is never added.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from afpkd.record import expanded
from deploy.devices import Device
from deploy.ssh_failure import line_error, no_ssh
from deploy.target import DeviceError

_FETCH = {
    "StrictHostKeyChecking": "accept-new",  # into a file of our own, for a person to look at
    "GlobalKnownHostsFile": "/dev/null",
    "HashKnownHosts": "no",
    "CheckHostIP": "no",
    "UpdateHostKeys": "no",
    "PreferredAuthentications": "none",
    "ControlMaster": "no",
    "ControlPath": "none",
}
_KNOWN_HOSTS = ("userknownhostsfile", "globalknownhostsfile")  # the user's first


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A machine's host key, as it was shown just now."""

    line: str
    """As it goes into known_hosts."""
    fingerprint: str
    """`SHA256:…`, as `ssh-keygen -lf` on the machine itself shows it."""
    kind: str
    """Such as ssh-ed25519."""
    known: bool
    """Whether known_hosts has a key of this machine already, and it is this one."""
    known_hosts: Path
    """Where it would be added."""


def fetch_host_key(device: Device) -> HostKey:
    """Ask the machine for its key. DeviceError: no ssh device; unreachable; E_HOSTKEY where another key is known."""
    if device.address is None:
        raise DeviceError(device.name, "E_LOCAL", "this machine needs no key")
    line, fingerprint = _shown(device)
    settings = _settings(device)
    files = _files_of(device, settings)
    known = _known(line.split()[0], files)
    if known and line.split()[1:3] not in known:  # it may have a key of the known kind beside this one
        line, fingerprint = _shown(device, {"HostKeyAlgorithms": _known_first(settings["hostkeyalgorithms"], known)})
    name, kind, key = line.split()[:3]
    if known and [kind, key] not in known:
        raise DeviceError(device.name, "E_HOSTKEY", _other_key(device, name, fingerprint, files))
    return HostKey(line=line, fingerprint=fingerprint, kind=kind, known=bool(known), known_hosts=files[0])


def add_host_key(key: HostKey) -> None:
    """Add the key to the user's known_hosts."""
    key.known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = key.known_hosts.read_text(encoding="utf-8") if key.known_hosts.exists() else ""
    with key.known_hosts.open("a", encoding="utf-8") as file:
        file.write(("\n" if text and not text.endswith("\n") else "") + key.line + "\n")


def _files_of(device: Device, settings: Mapping[str, str]) -> list[Path]:
    """The known_hosts that ssh reads, the one to add to first. DeviceError E_CONFIG where it keeps none."""
    names = [name for key in _KNOWN_HOSTS for name in settings.get(key, "").split()]
    files = [expanded(name) for name in names]
    if not files or names[0].lower() == "none" or (files[0].exists() and not files[0].is_file()):
        told = f"ssh keeps no keys: UserKnownHostsFile is {names[0] if names else 'not set'} for it in your ssh_config"
        raise DeviceError(device.name, "E_CONFIG", f"{told}: name a file there, or leave it out")
    return files


def _shown(device: Device, options: Mapping[str, str] | None = None) -> tuple[str, str]:
    """The key that the machine shows: its line for known_hosts, and its fingerprint."""
    assert device.address is not None
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "known_hosts"
        arguments = device.address.arguments({**_FETCH, "UserKnownHostsFile": str(found), **(options or {})})
        done = _run("ssh", *arguments, "true")
        if not found.exists():
            raise line_error(device.name, done.stderr)
        line = found.read_text(encoding="utf-8").splitlines()[0]
        return line, _run("ssh-keygen", "-lf", str(found)).stdout.split()[1]


def _settings(device: Device) -> dict[str, str]:
    """This ssh's configuration for the host; keys in lower case."""
    assert device.address is not None
    shown = _run("ssh", "-G", *device.address.arguments()).stdout
    return dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)


def _known_first(algorithms: str, known: Sequence[Sequence[str]]) -> str:
    """The algorithms in the order in which ssh asks a known host: those of its known keys first."""
    kinds = {kind for kind, _ in known}
    kinds |= {"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in kinds else set()
    return ",".join(sorted(algorithms.split(","), key=lambda name: name not in kinds))


def _known(name: str, files: list[Path]) -> list[list[str]]:
    """(kind, key) of every line for this host, hashed names included."""
    shown = [_run("ssh-keygen", "-F", name, "-f", str(path)).stdout for path in files if path.is_file()]
    lines = [line.split() for text in shown for line in text.splitlines() if line and line[0] not in "#@"]
    return [words[1:3] for words in lines]


def _other_key(device: Device, name: str, fingerprint: str, files: list[Path]) -> str:
    return (
        f"its host key is not the known one (it is now {fingerprint}): somebody may be between. If the machine was set "
        f"up anew, forget the old key with `ssh-keygen -R '{name}' -f {files[0]}`, then "
        f"`afpkd devices trust {device.name}`"
    )


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except FileNotFoundError:
        raise no_ssh() from None
