"""Ask the agent on a target: JSON over its stdin and stdout, every failure a DeviceError that names the device."""

from __future__ import annotations

import hashlib
import json
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afpkd.errors import UserError, printable
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


def call_agent(target: Target, verb: str, request: Json, *, brief: bool = True) -> Json:
    """Run one verb in a fresh process on the target and give its answer; brief: see `Target.run`.

    DeviceError where the agent reports an error (its code), dies without an answer, or its interpreter is missing.
    """
    # -I: neither PYTHON* variables nor a user's own packages change what is measured
    command = [*target.python, "-I", AGENT, verb]
    try:
        done = target.run(command, json.dumps({"protocol": PROTOCOL, **request}), brief=brief)
    except FileNotFoundError:
        message = f"no interpreter {target.python[0]}: install python3 there"
        raise DeviceError(target.name, "E_PYTHON", message) from None
    answer = _document(done.stdout)
    if answer is None or (done.returncode != 0 and "error" not in answer):
        raise DeviceError(target.name, "E_CRASH", _death(done))
    with understood(target.name):
        if "error" in answer:
            raise DeviceError(target.name, str(answer["error"]["code"]), str(answer["error"]["message"]))
    return answer


@contextmanager
def understood(device: str) -> Iterator[None]:
    """A device may answer anything: where that has not the form which is read here, a DeviceError says so."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        message = f"its answer is not one of this program's agent ({type(error).__name__}: {error})"
        raise DeviceError(device, "E_ANSWER", message) from error


def _document(text: str) -> Json | None:
    """Read the answer: the last line, since a login shell may print before the agent does, without ending its own."""
    last = text.strip().rpartition("\n")[2]
    try:
        document = json.loads(last[max(last.find('{"'), 0) :])
    except (ValueError, RecursionError):
        return None
    return _printable(document) if isinstance(document, dict) else None


def _printable(value: Any) -> Any:
    """The same with every string printable: what a device says is shown on a terminal, and must not steer it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _death(done: Completed) -> str:
    """Say how the agent ended without an answer, with the last thing it wrote."""
    if done.returncode == -signal.SIGKILL:
        how = "killed (SIGKILL): out of memory? free some there"
    elif done.returncode < 0:
        how = f"died of {_signal(-done.returncode)} in the runtime: try another version of it"
    else:
        how = f"ended without an answer (exit code {done.returncode})"
    lines = done.stderr.strip().splitlines()
    return f"the agent {how}" + (f"; its last line: {lines[-1]}" if lines else "")


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
