"""What may crash runs in a process of its own: building an engine, and deserialising one for the first time.

NVIDIA's libraries end the process on a foreign engine, on a full memory, on their own faults. A child's death is an
AgentError here; and the builder's memory does not count as the runtime's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import AgentError
from .interpreter import command

if TYPE_CHECKING:
    from collections.abc import Callable

    Json = dict[str, Any]

_START = """
import importlib, json, sys
request = json.loads(sys.stdin.readline())
sys.path[:] = request["path"]
importlib.import_module(request["package"] + ".child").answer(request)
"""


def run_in_child(operation: str, arguments: Json) -> Json:
    """Do `operation` in a fresh process that imports what this one would, and give its answer.

    AgentError: the child's own, E_OUT_OF_MEMORY where it was killed as the kernel does, or E_CRASH with its signal.
    """
    done = subprocess.run(
        _command(),
        input=json.dumps(_request(operation, arguments)) + "\n",
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    sys.stderr.write(done.stderr)
    try:
        answer: Json = json.loads(done.stdout)
    except ValueError:
        code = "E_OUT_OF_MEMORY" if done.returncode == -signal.SIGKILL else "E_CRASH"
        raise AgentError(code, f"{operation}: {_death(done)}") from None
    if "error" in answer:
        raise AgentError(**answer["error"])
    return answer


def start_child(operation: str, arguments: Json, stdout: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start `operation` beside this process; it works until its stdin ends, and writes to `stdout`."""
    process = subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=stdout)
    assert process.stdin is not None
    process.stdin.write(json.dumps(_request(operation, arguments)).encode() + b"\n")
    process.stdin.flush()
    return process


def _command() -> list[str]:
    return [*command(), "-I", "-c", _START]


def _request(operation: str, arguments: Json) -> Json:
    # This very package first, be it a folder or the archive: the child must run what its parent runs.
    path = [str(Path(__file__).parents[__package__.count(".") + 1]), *sys.path]
    return {"path": path, "package": __package__, "operation": operation, "arguments": arguments}


def answer(request: Json) -> None:
    """In the child: do the operation, print one JSON document (`sample`: lines of its own)."""
    if request["operation"] == "sample":
        from .sampler import sample

        return sample(request["arguments"])
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print: the answer keeps the real stdout
    try:
        document = _OPERATIONS[request["operation"]](request["arguments"])
    except AgentError as error:
        document = {"error": {"code": error.code, "message": error.message}}
    with output:
        json.dump(document, output)
    return None


def _build_engine(arguments: Json) -> Json:
    """Build `onnx` and write the engine to `plan`; gives the facts."""
    from .tensorrt_api import open_tensorrt
    from .tensorrt_build import BuildOptions, build_engine

    options = dict(arguments["options"], compute_capabilities=tuple(arguments["options"]["compute_capabilities"]))
    built = build_engine(open_tensorrt(arguments["library"]), arguments["onnx"], BuildOptions(**options))
    Path(arguments["plan"]).write_bytes(built.plan)
    return built.facts


def _check_engine(arguments: Json) -> Json:
    """Deserialise the engine at `plan`; gives what it says of itself."""
    from .tensorrt_api import open_tensorrt
    from .tensorrt_engine import describe_engine, open_engine

    api = open_tensorrt(arguments["library"])
    opened = open_engine(api, Path(arguments["plan"]).read_bytes(), arguments["dla_core"])
    return describe_engine(api, opened.engine)


def _death(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    last = f"; its last line: {lines[-1]}" if lines else ""
    if done.returncode == -signal.SIGKILL:
        return f"killed (SIGKILL): out of memory? end other programs, add swap, or take a smaller batch{last}"
    if done.returncode < 0:
        return f"the library died of {signal.Signals(-done.returncode).name}: try another version of it{last}"
    return f"ended without an answer (exit code {done.returncode}){last}"


_OPERATIONS: dict[str, Callable[[Json], Json]] = {"build_engine": _build_engine, "check_engine": _check_engine}
