"""Jobs that outlive the connection: `jobs/<id>/` holds a job's request, files, events, heartbeat and result.

A job is alive exactly while its supervisor (`supervisor.py`) holds the lock on `alive`: locks end with their process,
however that dies, and know neither clocks nor recycled process numbers. One job a device: whoever holds `device.lock`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import clocks, events, machine, store
from .errors import AgentError
from .interpreter import command_from
from .machine import boot_id
from .supervisor import CANCEL, HEARTBEAT, RESULT, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

JOBS = Path("jobs")
DEVICE_LOCK = Path("device.lock")
_POLL_S = 0.1
_CANCEL_S = 20.0
_FRESH_S = 86_400.0
_FULL_BYTES = 1 << 20


@dataclass(frozen=True)
class Job:
    """What the host submits."""

    protocol: int
    id: str
    """Digest of what is asked, so that asking twice is one job."""
    verb: str
    request: Json
    """The verb's own request; its paths are relative to the job's folder."""
    files: dict[str, str]
    """Name in the job's folder -> sha256 of a blob in the store."""
    max_seconds: float
    python: list[str]
    """Interpreter, with arguments before the agent's: an emulator, a container."""
    host: str
    """Who asks, for others to read."""
    clocks: str = "as-is"
    """`as-is`, `locked` or `mode:N`."""
    tied_to: int | None = None
    """A process of this machine without which the job shall not go on: its host, where that is the device itself."""


def submit(document: Json) -> Json:
    """Start a job and return at once; a job that is running or done is left as it is (`resumed`).

    `time_s` is the device's clock, which nothing but the host's record of how far it is off depends on.
    One that failed is started anew, and so is a deployment that is done: it is an act, and another may have followed.
    AgentError E_BUSY names who has the device; E_SUDO, E_CLOCKS, E_POWER_MODE where what an earlier job left changed
    stays so, and this one asks for better.
    """
    job = _job(document)
    folder = _folder(job.id)
    known = _state(folder) if folder.exists() else None
    if known == "running" or (known == "done" and job.verb != "deploy" and _is_fresh(folder)):
        return {"id": job.id, "state": known, "resumed": True, "time_s": time.time()}
    device = _take_device(job)
    clocks.put_back_before(job.clocks, Path())
    try:
        alive = _prepare(job, folder)
        _start_supervisor(job, folder, (device, alive))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return {"id": job.id, "state": "running", "resumed": False, "time_s": time.time()}


def _is_fresh(folder: Path) -> bool:
    """Whether a result that nobody fetched was made here today: in another power mode the answer is another."""
    result = _result(folder)
    age_s = time.time() - result["finished_at_s"]
    before: Json = result.get("answer", {}).get("machine", {}).get("before", {})
    return 0 <= age_s < _FRESH_S and before.get("power_mode") == machine.power_mode()


def follow(document: Json) -> Json:
    """Wait up to `wait_s` for events of job `id` beyond byte `offset`, or for its end; give them, its state and result.

    States: running, done, failed, cancelled, lost. `heartbeat_age_s` is read on the device's clock alone.
    """
    folder = _folder(document["id"])
    if not (folder / "job.json").exists():
        raise AgentError("E_JOB", f"no job {document['id']} on the device: it was removed, or never came here")
    until = time.monotonic() + document["wait_s"]
    while True:
        state = _state(folder)
        found, offset = events.read_from(folder / events.EVENTS, document["offset"])
        if found or state != "running" or time.monotonic() >= until:
            break
        time.sleep(_POLL_S)
    answer = {"state": state, "events": found, "offset": offset, "heartbeat_age_s": _heartbeat_age_s(folder)}
    return answer if state == "running" else dict(answer, result=_result(folder))


def restore(document: Json) -> Json:
    """Put back clocks and power mode that were left changed. AgentError as `clocks.put_back`.

    E_BUSY while a job runs, which will do it itself.
    """
    del document
    running = holder()
    if running:
        raise AgentError("E_BUSY", f"in use by {running}")
    return {"restored": clocks.put_back(Path())}


def cancel(document: Json) -> Json:
    """Ask job `id` to end and wait until it has; give its state."""
    folder = _folder(document["id"])
    if folder.exists():
        (folder / CANCEL).touch()
        until = time.monotonic() + _CANCEL_S
        while _state(folder) == "running" and time.monotonic() < until:
            time.sleep(_POLL_S)
    return {"id": document["id"], "state": _state(folder) if folder.exists() else "unknown"}


def forget(document: Json) -> Json:
    """Remove job `id`, whose result the host has; one that runs is left."""
    folder = _folder(document["id"])
    if folder.exists() and _state(folder) != "running":
        shutil.rmtree(folder)
    return {"id": document["id"], "removed": not folder.exists()}


def listed() -> list[Json]:
    """Give every job on the device: id, verb, host, state."""
    rows = []
    for folder in _folders():
        with suppress(OSError, ValueError):
            job = json.loads((folder / "job.json").read_text())
            rows.append({"id": job["id"], "verb": job["verb"], "host": job["host"], "state": _state(folder)})
    return rows


def remove_ended(older_than_s: float) -> None:
    """Remove jobs that ended and whose folder did not change for that long."""
    for folder in _folders():
        if time.time() - folder.stat().st_mtime >= older_than_s and _state(folder) != "running":
            shutil.rmtree(folder)


def _job(document: Json) -> Job:
    try:
        return Job(**document)
    except TypeError as error:
        raise AgentError("E_REQUEST", f"not a job: {error}") from None


def _folder(job_id: str) -> Path:
    if not re.fullmatch(r"[a-z]+-[0-9a-f]{16}", job_id):
        raise AgentError("E_REQUEST", f"not a job's id: {job_id!r}")
    return JOBS / job_id


def _folders() -> Iterator[Path]:
    return (path for path in sorted(JOBS.glob("*-*")) if path.is_dir())


def _take_device(job: Job) -> int:
    """Lock the device for this job; the descriptor travels to the supervisor and its child, and with it the lock."""
    lock = os.open(DEVICE_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AgentError("E_BUSY", f"in use by {holder() or 'another job'}") from None
    facts = {"id": job.id, "host": job.host, "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(facts).encode(), 0)
    return lock


def holder() -> str | None:
    """Name who has the device now, for people; None where it is free."""
    if not DEVICE_LOCK.exists() or not _locked(DEVICE_LOCK):
        return None
    try:
        facts = json.loads(DEVICE_LOCK.read_text())
        return f"job {facts['id']} of {facts['host']} since {facts['since']} (the device's clock)"
    except (ValueError, KeyError):
        return "another job"  # it has the lock, and has not written its name yet


def _prepare(job: Job, folder: Path) -> int:
    """Lay out the job's folder and lock `alive` for the supervisor."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    store.link_into(folder, job.files)
    # Its own agent: a newer one may replace the work folder's while this job runs.
    shutil.copyfile(sys.argv[0], folder / "agent.pyz")
    (folder / events.EVENTS).touch()
    alive = os.open(folder / "alive", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(alive, fcntl.LOCK_EX)
    write_json(folder / "request.json", job.request)
    write_json(folder / "job.json", dict(asdict(job), boot_id=boot_id()))
    return alive


def _start_supervisor(job: Job, folder: Path, locks: tuple[int, int]) -> None:
    """In a session of its own, with none of our pipes: the connection may end while it works."""
    with (folder / "log.txt").open("wb") as log:
        supervisor = subprocess.Popen(
            [*command_from(job.python), "-I", "agent.pyz", "supervise", *map(str, locks)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=locks,
            start_new_session=True,
        )
    supervisor.returncode = 0  # it is not ours to wait for


def _state(folder: Path) -> str:
    """Read the result only after the lock: the supervisor writes it before it lets go."""
    running = _locked(folder / "alive")
    try:
        state: str = json.loads((folder / RESULT).read_text())["state"]
    except (OSError, ValueError):
        return "running" if running else "lost"
    return state


def _locked(path: Path) -> bool:
    """Whether a process holds the lock. A shared lock, so that two who ask do not see each other."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _result(folder: Path) -> Json:
    with suppress(OSError, ValueError):
        result: Json = json.loads((folder / RESULT).read_text())
        return result
    job = json.loads((folder / "job.json").read_text())
    if job["boot_id"] != boot_id():
        how = "the device was rebooted"
    elif shutil.disk_usage(str(folder)).free < _FULL_BYTES:
        how = "its disk ran full"
    else:
        how = "the agent there was killed"
    return {"state": "lost", "error": {"code": "E_LOST", "message": f"{how} while the job ran: run it again"}}


def _heartbeat_age_s(folder: Path) -> float | None:
    try:
        return max(0.0, time.time() - (folder / HEARTBEAT).stat().st_mtime)
    except OSError:
        return None
