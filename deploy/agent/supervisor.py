"""Beside a job while it runs: heartbeat, time limit, cancelling; and its end as a structured result.

The work itself is a child, so that a segfault in a runtime or the kernel's out-of-memory killer becomes an error with
a code. Both hold the device's lock, and the child dies with its supervisor.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import clocks
from .errors import AgentError
from .interpreter import command_from, environment

if TYPE_CHECKING:
    Json = dict[str, Any]

RESULT, HEARTBEAT, CANCEL = "result.json", "heartbeat", "cancel"
_TICK_S = 0.2
_HEARTBEAT_S = 2.0
_GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1


def supervise(locks: tuple[int, ...]) -> None:
    """Run the job whose folder this is, write its result, end. `locks`: descriptors that live as long as the job."""
    job = json.loads(Path("job.json").read_text())
    started, kills = time.monotonic(), _num_oom_kills()
    signal.signal(signal.SIGTERM, lambda number, frame: Path(CANCEL).touch())
    work_folder = Path("../..")
    try:
        clocked = clocks.apply(job["clocks"], work_folder)
        child = _started(job, locks)
        verdict = _watched(child, job, started)
        outcome = verdict or _outcome(child.returncode, oom=_num_oom_kills() > kills)
        if "answer" in outcome:
            outcome["answer"]["clocks"] = clocked
    except AgentError as error:  # the power mode that was asked for cannot be had
        outcome = {"state": "failed", "error": {"code": error.code, "message": error.message}}
    finally:
        with suppress(AgentError):  # then the next contact does it, or says why not
            clocks.put_back(work_folder)
    write_json(Path(RESULT), dict(outcome, wall_s=time.monotonic() - started, finished_at_s=time.time()))


def write_json(path: Path, document: Json) -> None:
    """Write a document so that a reader finds all of it or nothing, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _started(job: Json, locks: tuple[int, ...]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)
    with Path("request.json").open("rb") as request, Path("answer.json").open("wb") as answer:
        return subprocess.Popen(
            [*command_from(job["python"]), "-I", "agent.pyz", job["verb"]],
            stdin=request,
            stdout=answer,
            env=environment(job["python"]),
            pass_fds=locks,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 (no threads here)
        )


def _watched(child: subprocess.Popen[bytes], job: Json, started: float) -> Json | None:
    """Wait for the child's end, or end it; give the result where it was ended."""
    beat = 0.0
    while True:
        now = time.monotonic()
        if now - beat >= _HEARTBEAT_S:
            Path(HEARTBEAT).touch()
            beat = now
        with suppress(subprocess.TimeoutExpired):
            child.wait(_TICK_S)
            return None
        if Path(CANCEL).exists():
            return _ended(child, "cancelled", "E_CANCELLED", "cancelled")
        if now - started > job["max_seconds"]:
            told = "take a shorter preset or fewer scenarios, or raise a board's max_seconds (devices.toml)"
            message = f"not done after {job['max_seconds']:g} s, the limit: {told}"
            return _ended(child, "failed", "E_TIMEOUT", message)
        if job["tied_to"] is not None and not Path(f"/proc/{job['tied_to']}").exists():
            return _ended(child, "cancelled", "E_CANCELLED", "the process that asked is gone")


def _ended(child: subprocess.Popen[bytes], state: str, code: str, message: str) -> Json:
    """Ask the child and all it started to end, then make them."""
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
            break
    return {"state": state, "error": {"code": code, "message": message}}


def _outcome(returncode: int, *, oom: bool) -> Json:
    try:
        answer = json.loads(Path("answer.json").read_text(encoding="utf-8"))
    except ValueError:
        answer = None
    if isinstance(answer, dict) and "error" in answer:
        return {"state": "failed", "error": answer["error"]}
    if isinstance(answer, dict) and returncode == 0:
        return {"state": "done", "answer": answer}
    code, how = _death(returncode, oom=oom)
    lines = Path("log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f"; its last line: {lines[-1]}" if lines else ""
    return {"state": "failed", "error": {"code": code, "message": f"the work {how}{last}"}}


def _death(returncode: int, *, oom: bool) -> tuple[str, str]:
    if returncode == -signal.SIGKILL:
        told = "the kernel killed it for memory" if oom else "out of memory?"
        return "E_OOM", f"was killed (SIGKILL): {told}: close programs there, add swap, or take a smaller batch"
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return "E_CRASH", f"died of {name} in the runtime: try another version of it"
    return "E_CRASH", f"ended without an answer (exit code {returncode})"


def _num_oom_kills() -> int:
    """How often the kernel's out-of-memory killer struck since boot (Linux 4.13 on)."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
