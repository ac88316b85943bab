"""Jobs on a device, here: how each ends, and what the next one finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import deploy
from afpkd.record import UserError, sha256_of
from deploy.agent import PROTOCOL
from deploy.client import call_agent, install_agent
from deploy.jobs import Patience, Work, run_job, send_missing
from deploy.local import LocalTarget
from deploy.target import Completed, DeviceError, LineError

if TYPE_CHECKING:
    from tests.deploy.conftest import HandMadeBundle

QUICK = Patience(pauses_s=(0.05,), line_s=20, busy_s=0, wait_s=1)
WARM_UP = {"min_seconds": 0, "min_count": 3, "window": 1, "tolerance": 1e9, "max_seconds": 9}
NAMES = ("manifest.json", "fp32.onnx", "golden.npz", "eval.npy")


@pytest.fixture
def target(tmp_path: Path) -> LocalTarget:
    work = LocalTarget("board", (sys.executable,), tmp_path / "device")
    work.folder.mkdir()
    install_agent(work)
    return work


@pytest.fixture
def work(bundle: HandMadeBundle, tmp_path: Path) -> Work:
    request = {
        "bundle": "bundle",
        "precision": "fp32",
        "runtime": "onnxruntime",
        "batch": 1,
        "threads": 1,
        "preset": {"min_seconds": 0, "min_count": 10, "warm_up": WARM_UP, "name": "test"},
        "evaluate": True,
        "out": "samples.npz",
    }
    files = {f"bundle/{name}": bundle.folder / name for name in NAMES}
    return Work(verb="profile", request=request, files=files, results={"samples.npz": tmp_path / "out.npz"})


def lasting(work: Work, seconds: float = 60) -> Work:
    """The same work, taking `seconds`."""
    return replace(work, request={**work.request, "preset": {**work.request["preset"], "min_seconds": seconds}})


class Heard(list[str]):
    """Keeps what a job says, and calls `then` once it says that it measures."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.then = then

    def __call__(self, text: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.append(text)
        if text == "measuring":
            self.then()


def processes(folder: Path, verb: str) -> list[int]:
    """The agent's processes that work for jobs of this device."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inside = folder in (path / "cwd").readlink().parents
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if inside and verb.encode() in words:
            found.append(int(path.name))
    return found


def killing(target: LocalTarget, verb: str, number: signal.Signals) -> Callable[[], None]:
    def kill() -> None:
        for process in processes(target.folder, verb):
            os.kill(process, number)

    return kill


def job_folder(target: LocalTarget) -> Path:
    (folder,) = (target.folder / "jobs").iterdir()
    return folder


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def test_a_job_answers_leaves_its_results_and_is_forgotten(target: LocalTarget, work: Work, tmp_path: Path) -> None:
    heard = Heard()
    answer = run_job(target, work, heard, QUICK)
    assert answer["golden"]["after"]["ok"]
    with np.load(tmp_path / "out.npz") as arrays:
        assert len(arrays["samples_ns"]) == 10
    assert heard[-4:] == ["loading", "measuring", "evaluating", "measured"]
    assert [text.split()[0] for text in heard[:-4]] == ["sending"] * 4
    assert list((target.folder / "jobs").iterdir()) == []


def test_what_is_there_is_not_sent_again(target: LocalTarget, work: Work) -> None:
    run_job(target, work, Heard(), QUICK)
    before = {path.name: path.stat().st_ino for path in (target.folder / "blobs").iterdir()}
    heard = Heard()
    run_job(target, work, heard, QUICK)
    assert not [text for text in heard if text.startswith("sending")]
    assert {path.name: path.stat().st_ino for path in (target.folder / "blobs").iterdir()} == before
    assert sorted(before) == sorted(sha256_of(path) for path in work.files.values())


def test_a_damaged_blob_is_sent_again(target: LocalTarget, work: Work) -> None:
    run_job(target, work, Heard(), QUICK)
    damaged = target.folder / "blobs" / sha256_of(work.files["bundle/fp32.onnx"])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    heard = Heard()
    assert run_job(target, work, heard, QUICK)["golden"]["after"]["ok"]
    assert [text for text in heard if text.startswith("sending")] == ["sending fp32.onnx (0.0 MB)"]


def test_the_works_own_error_keeps_its_code(target: LocalTarget, work: Work) -> None:
    with pytest.raises(DeviceError, match=r"device board: no int8 file for onnxruntime.* \[E_BUNDLE\]"):
        run_job(target, replace(work, request={**work.request, "precision": "int8"}), Heard(), QUICK)


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (signal.SIGKILL, "E_OOM", r"was killed \(SIGKILL\): .*memory"),
        (signal.SIGSEGV, "E_CRASH", "died of SIGSEGV in the runtime"),
    ],
)
def test_a_death_in_the_runtime_is_an_error_with_a_code(
    target: LocalTarget, work: Work, number: signal.Signals, code: str, text: str
) -> None:
    with pytest.raises(DeviceError, match=text) as caught:
        run_job(target, lasting(work), Heard(killing(target, "profile", number)), QUICK)
    assert caught.value.code == code


def test_an_agent_that_is_killed_is_told_and_takes_its_work_along(target: LocalTarget, work: Work) -> None:
    with pytest.raises(DeviceError, match=r"the agent there was killed while the job ran: run it again \[E_LOST\]"):
        run_job(target, lasting(work), Heard(killing(target, "supervise", signal.SIGKILL)), QUICK)
    wait_until(lambda: not processes(target.folder, "profile"), "the work ends with its agent")
    run_job(target, work, Heard(), QUICK)  # and the device is free


def test_a_reboot_is_told_apart(target: LocalTarget, work: Work) -> None:
    """A reboot ends all processes, and the boot's id is another one: here that of the job's beginning is changed."""

    def reboot() -> None:
        job = json.loads((job_folder(target) / "job.json").read_text())
        (job_folder(target) / "job.json").write_text(json.dumps({**job, "boot_id": "of the boot before"}))
        killing(target, "supervise", signal.SIGKILL)()

    with pytest.raises(DeviceError, match=r"the device was rebooted while the job ran: run it again \[E_LOST\]"):
        run_job(target, lasting(work), Heard(reboot), QUICK)


def test_what_was_lost_is_started_anew_by_the_same_call(target: LocalTarget, work: Work) -> None:
    slow = lasting(work, 1)
    with pytest.raises(DeviceError, match="E_LOST"):
        run_job(target, slow, Heard(killing(target, "supervise", signal.SIGKILL)), QUICK)
    heard = Heard()
    assert run_job(target, slow, heard, QUICK)["golden"]["after"]["ok"]
    assert not [text for text in heard if text.startswith("resumed")]


def test_the_device_itself_keeps_the_time_limit(target: LocalTarget, work: Work) -> None:
    with pytest.raises(DeviceError, match=r"not done after 0\.5 s, the limit: raise the device's max_seconds"):
        run_job(target, replace(lasting(work), max_seconds=0.5), Heard(), QUICK)
    assert not processes(target.folder, "profile")


def test_one_job_a_device_and_the_holder_is_named(target: LocalTarget, work: Work) -> None:
    refusals: list[str] = []

    def second() -> None:
        with pytest.raises(DeviceError) as caught:
            run_job(target, lasting(work, 50), Heard(), QUICK)
        refusals.append(str(caught.value))
        killing(target, "supervise", signal.SIGKILL)()

    with pytest.raises(DeviceError, match="E_LOST"):
        run_job(target, lasting(work), Heard(second), QUICK)
    (refusal,) = refusals
    host = f"process {os.getpid()} on {os.uname().nodename}"
    assert refusal.startswith("device board: in use by job profile-")
    assert f" of {host} since 20" in refusal
    assert refusal.endswith("[E_BUSY]")


def test_a_second_job_waits_for_the_first(target: LocalTarget, work: Work) -> None:
    heard = Heard()
    waiting = threading.Thread(
        target=run_job, args=(target, lasting(work, 0.1), heard, replace(QUICK, busy_s=60)), daemon=True
    )
    run_job(target, lasting(work, 1), Heard(waiting.start), QUICK)
    waiting.join(60)
    assert heard[-1] == "measured"
    assert [text for text in heard if text.startswith("waiting: device board: in use by job profile-")]


HOST = """
import json, sys
from pathlib import Path
from deploy.jobs import Patience, Work, run_job
from deploy.local import LocalTarget
folder, request, files, out = json.loads(sys.argv[1])
work = Work(verb="profile", request=request, files={n: Path(p) for n, p in files.items()},
            results={"samples.npz": Path(out)})
target = LocalTarget("board", (sys.executable,), Path(folder))
run_job(target, work, lambda text, done, total: print(text, flush=True), Patience(wait_s=1))
"""


def host_process(target: LocalTarget, work: Work, out: Path) -> subprocess.Popen[str]:
    """Another host's process that runs the work, and has come to measuring."""
    files = {name: str(path) for name, path in work.files.items()}
    arguments = json.dumps([str(target.folder), work.request, files, str(out)])
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, arguments],
        cwd=Path(deploy.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "measuring\n":
            return process
    raise AssertionError("it ended before it measured")


def test_a_killed_host_is_resumed_where_the_job_is(target: LocalTarget, work: Work, tmp_path: Path) -> None:
    slow = lasting(work, 2)
    with host_process(target, slow, tmp_path / "never.npz") as first:
        supervisor = processes(target.folder, "supervise")
        first.kill()
    heard = Heard()
    answer = run_job(target, slow, heard, QUICK)
    assert heard[0].startswith("resumed: job profile-")
    assert heard.count("measuring") == 1
    assert answer["timing"]["wall_s"] >= 2
    assert len(supervisor) == 1
    assert not (tmp_path / "never.npz").exists()
    assert (tmp_path / "out.npz").exists()


def test_a_result_nobody_fetched_waits(target: LocalTarget, work: Work, tmp_path: Path) -> None:
    slow = lasting(work, 0.5)
    with host_process(target, slow, tmp_path / "never.npz") as first:
        first.kill()
    result = job_folder(target) / "result.json"
    wait_until(result.exists, "the job ends alone")
    finished = json.loads(result.read_text())["answer"]
    heard = Heard()
    assert run_job(target, slow, heard, QUICK) == finished
    assert heard[0].endswith("was done there")


def test_ctrl_c_cancels_the_job_there(target: LocalTarget, work: Work, tmp_path: Path) -> None:
    with host_process(target, lasting(work), tmp_path / "never.npz") as host:
        host.send_signal(signal.SIGINT)
        host.wait(60)
        assert host.returncode != 0
    assert not processes(target.folder, "supervise")
    assert not processes(target.folder, "profile")
    assert json.loads((job_folder(target) / "result.json").read_text())["error"]["code"] == "E_CANCELLED"
    run_job(target, work, Heard(), QUICK)


def test_a_job_that_is_tied_to_its_host_ends_with_it(target: LocalTarget, work: Work) -> None:
    with subprocess.Popen(["sleep", "60"]) as host:
        files = {name: sha256_of(path) for name, path in work.files.items()}
        blobs = {sha256: work.files[name] for name, sha256 in files.items()}
        send_missing(target, blobs, Heard(), QUICK)
        job = {
            "id": "profile-" + "0" * 16,
            "verb": "profile",
            "request": {"protocol": PROTOCOL, **lasting(work).request},
            "files": files,
            "max_seconds": 60,
            "python": list(target.python),
            "host": "a test",
            "tied_to": host.pid,
        }
        assert call_agent(target, "submit", job)["state"] == "running"
        host.kill()
    seen = {"state": "running"}
    while seen["state"] == "running":
        seen = call_agent(target, "follow", {"id": job["id"], "offset": 0, "wait_s": 0})
    assert seen["state"] == "cancelled"


class Dropping:
    """A target whose line ends before every second command is done; its files arrive."""

    def __init__(self, inner: LocalTarget, code: str = "E_DROPPED", *, lasting: bool = False) -> None:
        self.inner, self.name, self.python = inner, inner.name, inner.python
        self.error = LineError(inner.name, code, "the line ended", lasting=lasting)
        self.num_runs = 0

    def run(self, command: Any, stdin: str) -> Completed:
        self.num_runs += 1
        done = self.inner.run(command, stdin)
        if self.num_runs % 2 == 0:
            raise self.error  # done there, but nobody here knows
        return done

    def put(self, source: Path, name: str) -> None:
        self.inner.put(source, name)

    def get(self, name: str, destination: Path) -> None:
        self.inner.get(name, destination)


def test_every_step_survives_a_lost_answer(target: LocalTarget, work: Work) -> None:
    dropping, heard = Dropping(target), Heard()
    answer = run_job(dropping, lasting(work, 1), heard, QUICK)
    assert answer["golden"]["after"]["ok"]
    assert heard.count("measuring") == 1
    assert [text for text in heard if text.endswith("[E_DROPPED]: trying again; the job goes on there")]


def test_a_line_that_stays_away_is_given_up_and_the_job_goes_on(target: LocalTarget, work: Work) -> None:
    class Gone(Dropping):
        def run(self, command: Any, stdin: str) -> Completed:
            if command[-1] == "follow":
                raise self.error
            return self.inner.run(command, stdin)

    with pytest.raises(LineError, match="E_UNREACHABLE"):
        run_job(Gone(target, "E_UNREACHABLE"), lasting(work, 1), Heard(), replace(QUICK, line_s=0.3))
    heard = Heard()
    run_job(target, lasting(work, 1), heard, QUICK)
    assert heard[0].startswith("resumed: job profile-")


def test_a_line_that_fails_for_good_is_not_tried_again(target: LocalTarget, work: Work) -> None:
    dropping = Dropping(target, "E_HOSTKEY", lasting=True)
    dropping.num_runs = 1
    with pytest.raises(LineError, match="E_HOSTKEY"):
        run_job(dropping, work, Heard(), QUICK)
    assert dropping.num_runs == 2


def test_host_and_agent_of_two_protocols_refuse_each_other(target: LocalTarget) -> None:
    for verb in ("submit", "follow", "missing", "probe", "gc"):
        with pytest.raises(UserError, match=rf"host speaks protocol {PROTOCOL + 1}, this agent {PROTOCOL}: update"):
            call_agent(target, verb, {"protocol": PROTOCOL + 1})


def test_a_newer_agent_does_not_disturb_a_running_job(target: LocalTarget, work: Work) -> None:
    def replace_agent() -> None:
        (target.folder / "agent.pyz").unlink()
        (target.folder / "agent.pyz").write_bytes(b"another version")
        install_agent(target)

    assert run_job(target, lasting(work, 1), Heard(replace_agent), QUICK)["golden"]["after"]["ok"]


@pytest.mark.parametrize("moment", [time.time() + 86400, 946684800])
def test_a_clock_that_jumps_changes_nothing(target: LocalTarget, work: Work, moment: float) -> None:
    """The heartbeat of tomorrow is no error, nor is one of the year 2000; nothing else reads clocks."""

    def jump() -> None:
        os.utime(job_folder(target) / "heartbeat", (moment, moment))

    assert run_job(target, lasting(work, 1), Heard(jump), QUICK)["golden"]["after"]["ok"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id": "../../etc"}, "E_REQUEST"),
        ({"files": {"../outside": "0" * 64}}, "E_REQUEST"),
        ({"files": {"bundle/x": "../device.lock"}}, "E_REQUEST"),
        ({"files": {"bundle/x": "0" * 64}}, "E_BLOB"),
        ({"colour": "red"}, "E_REQUEST"),
    ],
)
def test_what_is_no_job_is_refused_and_leaves_nothing(target: LocalTarget, changes: dict[str, Any], code: str) -> None:
    job = {
        "id": "profile-" + "0" * 16,
        "verb": "profile",
        "request": {},
        "files": {},
        "max_seconds": 1,
        "python": list(target.python),
        "host": "a test",
    }
    with pytest.raises(DeviceError) as caught:
        call_agent(target, "submit", {**job, **changes})
    assert caught.value.code == code
    assert list(target.folder.glob("jobs/*")) == []
    assert not (target.folder.parent / "outside").exists()


def test_following_what_is_not_there(target: LocalTarget) -> None:
    with pytest.raises(DeviceError, match=r"no job profile-0{16} on the device.*\[E_JOB\]"):
        call_agent(target, "follow", {"id": "profile-" + "0" * 16, "offset": 0, "wait_s": 0})
