"""Ask the agent on a target: JSON over its stdin and stdout, every failure a DeviceError that names the device."""

from __future__ import annotations

import hashlib
import json
import signal
import tempfile
from pathlib import Path

from afpkd.record import Json
from deploy.agent import PROTOCOL
from deploy.pack import AGENT, agent_archive
from deploy.target import Completed, DeviceError, Target


def install_agent(target: Target, unless: str | None = None) -> None:
    """Put the agent into the target's work folder; `unless` is the hash of the one that is there."""
    archive = agent_archive()
    if hashlib.sha256(archive).hexdigest() == unless:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / AGENT
        path.write_bytes(archive)
        target.put(path, AGENT)


def call_agent(target: Target, verb: str, request: Json) -> Json:
    """Run one verb in a fresh process on the target and give its answer.

    DeviceError where the agent reports an error (its code), dies without an answer, or its interpreter is missing.
    """
    # -I: neither PYTHON* variables nor a user's own packages change what is measured
    command = [*target.python, "-I", AGENT, verb]
    try:
        done = target.run(command, json.dumps({"protocol": PROTOCOL, **request}))
    except FileNotFoundError:
        message = f"no interpreter {target.python[0]}: install python3 there"
        raise DeviceError(target.name, "E_PYTHON", message) from None
    answer = _document(done.stdout)
    if answer is None or (done.returncode != 0 and "error" not in answer):
        raise DeviceError(target.name, "E_CRASH", _death(done))
    if "error" in answer:
        raise DeviceError(target.name, answer["error"]["code"], answer["error"]["message"])
    return answer


def _document(text: str) -> Json | None:
    """Read the answer: the last line, since a login shell may print before the agent does."""
    try:
        document = json.loads(text.strip().rpartition("\n")[2])
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _death(done: Completed) -> str:
    """Say how the agent ended without an answer, with the last thing it wrote."""
    if done.returncode == -signal.SIGKILL:
        how = "killed (SIGKILL): out of memory? free some there"
    elif done.returncode < 0:
        how = f"died of {signal.Signals(-done.returncode).name} in the runtime: try another version of it"
    else:
        how = f"ended without an answer (exit code {done.returncode})"
    lines = done.stderr.strip().splitlines()
    return f"the agent {how}" + (f"; its last line: {lines[-1]}" if lines else "")
