"""Unit files for systemd, offered with every release and installed by nobody but the user.

A socket of the user's own: who connects writes JSON lines and reads JSON lines, as with `predict --stdin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SOCKET = """\
# systemctl --user link {root}/current/afpkd.socket {root}/current/afpkd@.service
# systemctl --user enable --now afpkd.socket
# So that it outlives your last session, and begins at boot:
# sudo loginctl enable-linger "$USER"
[Unit]
Description=Predictions of the deployed student

[Socket]
ListenStream=%t/afpkd.socket
SocketMode=0600
Accept=yes

[Install]
WantedBy=sockets.target
"""

SERVICE = """\
[Unit]
Description=Predictions of the deployed student, one connection

[Service]
ExecStart={command} predict --stdin
StandardInput=socket
StandardOutput=socket
StandardError=journal
"""


def unit_files(root: Path, python: Sequence[str]) -> dict[str, str]:
    """Give name -> text of the units for the work folder `root`; they follow `current` to later releases."""
    command = " ".join(map(_quoted, [*python, "-I", str(root / "current" / "agent.pyz")]))
    return {"afpkd.socket": SOCKET.format(root=root), "afpkd@.service": SERVICE.format(command=command)}


def _quoted(word: str) -> str:
    """A word of systemd's command lines: quoted, with its specifiers and variables switched off."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
