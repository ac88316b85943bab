"""Ask the agent on a target: JSON over its stdin and stdout, every failure a UserError that names the device."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path

from afpkd.record import Json, UserError
from deploy.agent import PROTOCOL
from deploy.pack import agent_archive
from deploy.target import Completed, Target

_AGENT = "agent.pyz"


def install_agent(target: Target) -> None:
    """Put the agent into the target's work folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _AGENT
        path.write_bytes(agent_archive())
        target.put(path, _AGENT)


def call_agent(target: Target, verb: str, request: Json) -> Json:
    """Run one verb in a fresh process on the target and give its answer.

    UserError where the agent reports an error, dies without an answer, or its interpreter is missing.
    """
    # -I: neither PYTHON* variables nor a user's own packages change what is measured
    command = [target.python, "-I", _AGENT, verb]
    try:
        done = target.run(command, json.dumps({"protocol": PROTOCOL, **request}))
    except FileNotFoundError:
        raise UserError(f"device {target.name}: no interpreter {target.python}: install python3 there") from None
    answer = _document(done.stdout)
    if answer is None or (done.returncode != 0 and "error" not in answer):
        raise UserError(f"device {target.name}: {_death(done)}")
    if "error" in answer:
        error = answer["error"]
        raise UserError(f"device {target.name}: {error['message']} [{error['code']}]")
    return answer


def _document(text: str) -> Json | None:
    try:
        document = json.loads(text)
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
