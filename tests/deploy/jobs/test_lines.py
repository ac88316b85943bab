"""Jobs whose host is killed, interrupted, or loses the line; hosts and agents of two versions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import deploy
from afpkd.record import sha256_of
from bench.loopback import wait_until
from deploy.agent import PROTOCOL
from deploy.client import call_agent, install_agent
from deploy.jobs import Work, run_job, send_missing
from deploy.local import LocalTarget
from deploy.target import Completed, DeviceError, LineError
from tests.deploy.jobs.conftest import QUICK, Heard, job_folder, lasting, processes

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


def test_a_result_nobody_fetched_waits(target: LocalTarget, work: Work, tmp_path: Path) -> None:
    slow = lasting(work, 0.5)
    with host_process(target, slow, tmp_path / "never.npz") as first:
        first.kill()
    result = job_folder(target) / "result.json"
    wait_until(result.exists, "the job ends alone")
    finished = json.loads(result.read_text())["answer"]
    heard = Heard()
    answer = run_job(target, slow, heard, QUICK)
    assert answer == {**finished, "clock": answer["clock"], "finished_at_s": answer["finished_at_s"]}
    assert abs(answer["clock"]["offset_s"]) <= answer["clock"]["within_s"]
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

    def run(self, command: Any, stdin: str, *, brief: bool = True) -> Completed:
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


def test_a_line_that_drops_while_a_file_is_sent_is_waited_for(target: LocalTarget, work: Work) -> None:
    class Roaming(Dropping):
        tries = 0

        def put(self, source: Path, name: str) -> None:
            self.tries += 1
            if self.tries <= 5:  # more often than a damaged file is sent again
                raise self.error
            self.inner.put(source, name)

        def run(self, command: Any, stdin: str, *, brief: bool = True) -> Completed:
            return self.inner.run(command, stdin)

    roaming = Roaming(target)
    assert run_job(roaming, work, Heard(), QUICK)["golden"]["after"]["ok"]
    assert roaming.tries > 5


def test_a_line_that_stays_away_is_given_up_and_the_job_goes_on(target: LocalTarget, work: Work) -> None:
    class Gone(Dropping):
        def run(self, command: Any, stdin: str, *, brief: bool = True) -> Completed:
            if command[-1] == "follow":
                raise self.error
            return self.inner.run(command, stdin)

    with pytest.raises(LineError, match="E_UNREACHABLE"):
        run_job(Gone(target, "E_UNREACHABLE"), lasting(work, 1), Heard(), replace(QUICK, line_s=0.3))
    heard = Heard()
    run_job(target, lasting(work, 1), heard, QUICK)
    assert heard[0].startswith("resumed: job profile-")


def test_only_the_hashing_of_what_is_there_may_take_long(target: LocalTarget, work: Work) -> None:
    class Noting(Dropping):
        brief: ClassVar[dict[str, bool]] = {}

        def run(self, command: Any, stdin: str, *, brief: bool = True) -> Completed:
            self.brief[command[-1]] = brief
            return self.inner.run(command, stdin)

    run_job(Noting(target), work, Heard(), QUICK)
    assert Noting.brief == {"missing": False, "submit": True, "follow": True, "forget": True}


def test_a_line_that_fails_for_good_is_not_tried_again(target: LocalTarget, work: Work) -> None:
    dropping = Dropping(target, "E_HOSTKEY", lasting=True)
    dropping.num_runs = 1
    with pytest.raises(LineError, match="E_HOSTKEY"):
        run_job(dropping, work, Heard(), QUICK)
    assert dropping.num_runs == 2


def test_a_newer_agent_does_not_disturb_a_running_job(target: LocalTarget, work: Work) -> None:
    def replace_agent() -> None:
        (target.folder / "agent.pyz").unlink()
        (target.folder / "agent.pyz").write_bytes(b"another version")
        install_agent(target)

    assert run_job(target, lasting(work, 1), Heard(replace_agent), QUICK)["golden"]["after"]["ok"]


@pytest.mark.parametrize("moment", [time.time() + 86400, 946684800], ids=["tomorrow", "2000"])
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


def test_a_result_that_was_never_fetched_is_taken_today_and_made_anew_later(target: LocalTarget, work: Work) -> None:
    """Another day, or in another power mode, the board would answer otherwise."""

    class Cut(Dropping):
        def get(self, name: str, destination: Path) -> None:
            raise LineError("board", "E_UNREACHABLE", "gone", lasting=True)

    def heard_after(**changes: Any) -> list[str]:
        with pytest.raises(LineError):
            run_job(Cut(target, "E_UNREACHABLE"), work, Heard(), QUICK)
        path = job_folder(target) / "result.json"
        result = json.loads(path.read_text())
        result["finished_at_s"] -= changes.get("age_s", 0)
        result["answer"]["machine"]["before"]["power_mode"] = changes.get("power_mode")
        path.write_text(json.dumps(result))
        heard = Heard()
        answer = run_job(target, work, heard, QUICK)
        assert abs(answer["finished_at_s"] - time.time()) < 600 + changes.get("age_s", 0)
        return heard

    def resumed(heard: list[str]) -> bool:  # a result that is taken tells its events again
        return any(text.startswith("resumed: job profile-") for text in heard)

    assert resumed(heard_after(age_s=3600))
    assert not resumed(heard_after(age_s=2 * 86_400))
    assert not resumed(heard_after(power_mode="pmode:0007"))
