"""`python3 -I agent.pyz VERB`: one JSON document on stdin, one on stdout; exit code 0 exactly where it is no error."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import PROTOCOL, cleaning, jobs, probe, releases, store, supervisor
from .errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Json = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Answer one verb and give the exit code; every failure becomes a JSON document."""
    if arguments[:1] == ["supervise"]:  # the agent calls itself: its answer is a file
        supervisor.supervise(tuple(map(int, arguments[1:])))
        return 0
    if arguments[:1] == ["predict"]:  # for people and pipes: words in, a line an image out
        return _for_people("predict", arguments[1:], Path(sys.argv[0]))
    if arguments[:1] == ["profile"] and len(arguments) > 1:  # without a host
        return _for_people("by_hand", arguments[1:])
    output = _kept_stdout()
    try:
        text, code = json.dumps(_answer(arguments), allow_nan=False), 0
    except Exception as error:
        text, code = _told(error), 1
    with output:
        output.write(text + "\n")
    return code


def _answer(arguments: Sequence[str]) -> Json:
    verb = arguments[0] if len(arguments) == 1 else None
    if verb not in _VERBS:
        raise AgentError("E_VERB", "expected one verb of: {}".format(", ".join(sorted(_VERBS))))
    text = "" if sys.stdin.isatty() else sys.stdin.read()
    try:
        request = json.loads(text or "{}")
    except ValueError as error:
        raise AgentError("E_REQUEST", f"stdin is not a JSON document: {error}") from None
    if not isinstance(request, dict):
        raise AgentError("E_REQUEST", "stdin is not a JSON object")
    if request.get("protocol", PROTOCOL) != PROTOCOL:
        message = "host speaks protocol {}, this agent {}: update the older of the two"
        raise AgentError("E_PROTOCOL", message.format(request["protocol"], PROTOCOL))
    return _VERBS[verb](request)


def _version(request: Json) -> Json:
    """Say which agent this is; needs nothing but the interpreter."""
    del request
    return {"protocol": PROTOCOL, "python": platform.python_version()}


def _with_numpy(module: str) -> Any:
    """Import a module of the agent that needs numpy: not before, since other verbs must tell that it is missing."""
    try:
        return importlib.import_module(f"{__package__}.{module}")
    except ImportError as error:
        hint = "numpy is needed on the device (Debian, JetPack: apt install python3-numpy)"
        raise AgentError("E_NUMPY", f"{error}: {hint}") from None


def _profile(request: Json) -> Json:
    answer: Json = _with_numpy("profiling").profile(request)
    return answer


def _measure(request: Json) -> Json:
    answer: Json = _with_numpy("any_file").measure_file(request)
    return answer


def _deploy(request: Json) -> Json:
    answer: Json = _with_numpy("deployment").deploy(request)
    return answer


def _for_people(module: str, *arguments: Any) -> int:
    """Leave it to a module's `main`, which writes to the stream that it is given; its errors are told here."""
    with _kept_stdout() as output:
        try:
            code: int = _with_numpy(module).main(*arguments, output)
        except Exception as error:
            output.write(_told(error) + "\n")
            return 1
    return code


def _kept_stdout() -> IO[str]:
    """The real stdout, a line at a time. Runtimes print on the C level too: all other output goes to stderr."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return output


def _told(error: Exception) -> str:
    known = error if isinstance(error, AgentError) else AgentError("E_UNEXPECTED", _one_line(error))
    return json.dumps({"error": {"code": known.code, "message": known.message}})


def _one_line(error: Exception) -> str:
    """Name an unforeseen error and the line it came from: all that is left of its traceback."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"


_VERBS: dict[str, Callable[[Json], Json]] = {
    "cancel": jobs.cancel,
    "deploy": _deploy,
    "follow": jobs.follow,
    "forget": jobs.forget,
    "gc": cleaning.collect,
    "measure": _measure,
    "missing": store.missing,
    "probe": probe.probe,
    "profile": _profile,
    "restore": jobs.restore,
    "rollback": releases.rollback,
    "status": releases.status,
    "submit": jobs.submit,
    "version": _version,
}
