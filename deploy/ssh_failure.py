"""What OpenSSH's client said when it failed, as an error with a code and what to do."""

from __future__ import annotations

import re
from typing import NamedTuple

from afpkd.errors import UserError
from deploy.target import LineError


class _Failure(NamedTuple):
    said: str
    """A pattern in what ssh wrote."""
    code: str
    advice: str
    lasting: bool


_FAILURES = (
    _Failure(
        r"Host key verification failed|No \S+ host key is known",
        "E_HOSTKEY",
        "its host key is not known here: look at it and accept it with `afpkd devices trust {device}`",
        True,
    ),
    _Failure(
        r"Permission denied|Too many authentication failures",
        "E_AUTH",
        "{line}: check user and key (`ssh-copy-id`); passwords are never used",
        True,
    ),
    _Failure(
        r"Bad configuration option|Bad owner or permissions|Can't open user config|command-line: line",
        "E_CONFIG",
        "{line}: mend ssh's configuration",
        True,
    ),
    _Failure(
        r"Could not resolve hostname",
        "E_UNREACHABLE",
        "{line}: check the device's host in devices.toml",
        False,
    ),
    _Failure(
        r"Connection refused|timed out|No route to host|unreachable|Host is down",
        "E_UNREACHABLE",
        "{line}: is it on, and does sshd listen there?",
        False,
    ),
    # What is not known counts as a dropped line, which is worth another try.
    _Failure(r"", "E_DROPPED", "the line ended ({line})", False),
)


def no_ssh() -> UserError:
    """The client itself is not there."""
    return UserError("E_NO_SSH", "no ssh on this machine: install OpenSSH's client (openssh-client)")


def line_error(device: str, stderr: str) -> LineError:
    """Read ssh's messages."""
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        return LineError(device, "E_HOSTKEY", _changed(device, stderr), lasting=True)
    lines = [" ".join(line.split()) for line in stderr.splitlines() if line.strip()] or ["ssh said nothing"]
    failure = next(failure for failure in _FAILURES if re.search(failure.said, stderr, re.IGNORECASE))
    line = next(line for line in reversed(lines) if re.search(failure.said, line, re.IGNORECASE))
    message = failure.advice.format(device=device, line=line)
    return LineError(device, failure.code, message, lasting=failure.lasting)


def _changed(device: str, stderr: str) -> str:
    """A changed key is either a machine set up anew, or somebody between: the user must say which."""
    fingerprint = re.search(r"SHA256:[A-Za-z0-9+/]+", stderr)
    offending = re.search(r"Offending \S+ key in (.+):(\d+)", stderr)
    now = f" (it is now {fingerprint[0]})" if fingerprint else ""
    where = f"remove line {offending[2]} of {offending[1].strip()}" if offending else "remove its line from known_hosts"
    return (
        f"its host key has CHANGED{now}: somebody may be between. If the machine was set up anew, {where}, then "
        f"`afpkd devices trust {device}`"
    )
