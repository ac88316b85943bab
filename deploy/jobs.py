"""Work on a device that outlives the line to it: send what is missing, submit, follow, fetch; resume after anything.

A job's id is the digest of all that it does, so that asking again finds the job that runs, or the result that waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from threading import Event
from typing import TypeVar

from afpkd.record import Json, atomic_path, digest, sha256_of
from deploy.agent import PROTOCOL
from deploy.client import call_agent, understood
from deploy.pack import agent_sha256
from deploy.target import DeviceError, LineError, Target

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Told (text, done, total); a total of 0 is a notice, no step."""

SENDING = "sending"
"""How the text of a file that is sent begins."""

_SENDS = 3
_BUDGET_BYTES = 2 << 30
_HEARTBEAT_LOST_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done on a device."""

    verb: str
    request: Json
    """The verb's request; its paths are relative to the job's folder."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name in the job's folder -> file here."""
    results: Mapping[str, Path] = field(default_factory=dict)
    """Name in the job's folder -> where it goes here."""
    max_seconds: float = 3600.0
    clocks: str = "as-is"
    budget_bytes: int = _BUDGET_BYTES
    """What may stay on the device for next time, beside this work's own files."""
    tied: bool = False
    """Whether it shall end with this process: where the device is this machine, and nobody would come back for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what."""

    line_s: float = 600.0
    """For a lost line to come back; the job goes on meanwhile."""
    busy_s: float = 900.0
    """For another's job to end."""
    wait_s: float = 100.0
    """For one answer about a job without news: every question is a process there, beside what is measured. Shorter than
    a command may take (`SshTarget.timeout_s`); a line that is dead shows earlier."""
    pauses_s: Sequence[float] = (0.5, 1, 2, 4, 8, 15)
    """Between tries; the last one again and again."""
    stop: Event = field(default_factory=Event)
    """Set by another thread: then the job is cancelled, as by a KeyboardInterrupt here."""


def run_job(target: Target, work: Work, progress: Progress, patience: Patience | None = None) -> Json:
    """Do the work as a job on the target, fetch its results, give its answer; in `clock` how far the device's is off.

    DeviceError: the job's own failure; E_BUSY naming who has the device; E_DISK; LineError where the line stays away
    (the job goes on: the same call resumes it). A KeyboardInterrupt cancels the job.
    """
    with understood(target.name):
        return _done(target, work, progress, patience or Patience())


def _done(target: Target, work: Work, progress: Progress, patience: Patience) -> Json:
    files = {name: sha256_of(path) for name, path in work.files.items()}
    job_id = _job_id(target, work, files)
    blobs = {files[name]: path for name, path in work.files.items()}
    send_missing(target, blobs, progress, patience, budget_bytes=work.budget_bytes)
    try:
        submitted, clock = _submit(target, _job(work, job_id, files), progress, patience)
        if submitted["resumed"]:
            progress(f"resumed: job {job_id} was {submitted['state']} there", 0, 0)
        result = _followed(target, job_id, progress, patience)
        answer = {**result["answer"], "clock": clock, "finished_at_s": result["finished_at_s"] - clock["offset_s"]}
        for name, path in work.results.items():
            with atomic_path(path) as temporary:
                _tried(partial(target.get, f"jobs/{job_id}/{name}", temporary), patience)
    except KeyboardInterrupt:
        with suppress(DeviceError):
            call_agent(target, "cancel", {"id": job_id})
        raise
    with suppress(DeviceError):  # it would only lie there
        call_agent(target, "forget", {"id": job_id})
    return answer


def send_missing(
    target: Target,
    blobs: Mapping[str, Path],
    progress: Progress,
    patience: Patience,
    *,
    budget_bytes: int = _BUDGET_BYTES,
) -> None:
    """Send the blobs (sha256 -> file) that are not on the device, or damaged there. DeviceError, LineError."""
    sizes = {sha256: path.stat().st_size for sha256, path in blobs.items()}
    request = {"files": sizes, "budget_bytes": budget_bytes}
    # it hashes what is there: gigabytes on a memory card take minutes
    missing = _tried(partial(call_agent, target, "missing", request, brief=False), patience)["missing"]
    for done, sha256 in enumerate(missing):
        progress(f"{SENDING} {blobs[sha256].name} ({sizes[sha256] / 1e6:.1f} MB)", done, len(missing))
        _tried(partial(_sent, target, blobs[sha256], f"blobs/{sha256}"), patience)


def _sent(target: Target, path: Path, name: str) -> None:
    for attempt in range(1, _SENDS + 1):
        try:
            return target.put(path, name)
        except DeviceError as error:
            if error.code != "E_CORRUPT" or attempt == _SENDS:
                raise
    return None


def _job_id(target: Target, work: Work, files: Mapping[str, str]) -> str:
    identity = {
        "verb": work.verb,
        "request": work.request,
        "files": dict(files),
        "clocks": work.clocks,
        "python": list(target.python),
        "agent": agent_sha256(),
    }
    return f"{work.verb}-{digest(identity)[:16]}"


def _job(work: Work, job_id: str, files: Json) -> Json:
    return {
        "id": job_id,
        "verb": work.verb,
        "request": {"protocol": PROTOCOL, **work.request},
        "files": files,
        "max_seconds": work.max_seconds,
        "host": f"process {os.getpid()} on {os.uname().nodename}",
        "clocks": work.clocks,
        "tied_to": os.getpid() if work.tied else None,
    }


def _submit(target: Target, job: Json, progress: Progress, patience: Patience) -> tuple[Json, Json]:
    """Submit; where another job has the device, wait for its end. Also give how far the device's clock is off."""
    began, told = time.monotonic(), ""
    request = {**job, "python": list(target.python)}
    for pause in _pauses(patience):
        try:
            return _tried(partial(_clocked, target, request), patience)
        except DeviceError as error:
            if error.code != "E_BUSY" or time.monotonic() - began > patience.busy_s:
                raise
            if str(error) != told:
                told = str(error)
                progress(f"waiting: {told}", 0, 0)
            time.sleep(pause)
    raise AssertionError("pauses never end")


def _clocked(target: Target, request: Json) -> tuple[Json, Json]:
    """Submit, and hold the device's clock against ours: seconds it is ahead, give or take half the round trip."""
    before = time.time()
    submitted = call_agent(target, "submit", request)
    half = (time.time() - before) / 2
    return submitted, {"offset_s": submitted["time_s"] - before - half, "within_s": half}


def _followed(target: Target, job_id: str, progress: Progress, patience: Patience) -> Json:
    """Tell the job's events until it ends; give its result. DeviceError: what became of it instead."""
    offset, silent = 0, False
    while True:
        request = {"id": job_id, "offset": offset, "wait_s": patience.wait_s}
        seen = _tried(partial(call_agent, target, "follow", request), patience, progress)
        offset = seen["offset"]
        for event in seen["events"]:
            progress(event["text"], event["done"], event["total"])
        if seen["state"] == "done":
            result: Json = seen["result"]
            return result
        if seen["state"] != "running":
            raise DeviceError(target.name, **seen["result"]["error"])
        age_s = seen["heartbeat_age_s"]
        if age_s is not None and age_s > _HEARTBEAT_LOST_S and not silent:
            silent = True
            progress(f"no heartbeat for {age_s:.0f} s: the device is very busy or hangs", 0, 0)


def _tried(call: Callable[[], T], patience: Patience, progress: Progress | None = None) -> T:
    """Call, and again after a lost line, for as long as patience lasts; the line's own error in the end."""
    began = time.monotonic()
    for pause in _pauses(patience):
        try:
            return call()
        except LineError as error:
            if error.lasting or time.monotonic() - began > patience.line_s:
                raise
            if progress is not None:
                progress(f"{error}: trying again; the job goes on there", 0, 0)
            time.sleep(pause)
    raise AssertionError("pauses never end")


def _pauses(patience: Patience) -> Iterator[float]:
    """Before each try, the pause to make after it; KeyboardInterrupt once all shall stop."""
    for pause in chain(patience.pauses_s, repeat(patience.pauses_s[-1])):
        if patience.stop.is_set():
            raise KeyboardInterrupt
        yield pause
