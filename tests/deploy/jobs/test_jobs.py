"""Jobs on a device: what is sent, how each job ends, and what the next one finds."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from afpkd.record import sha256_of
from bench.loopback import wait_until
from deploy.agent import child, clocks, interpreter
from deploy.agent.errors import AgentError
from deploy.jobs import Work, run_job
from deploy.local import LocalTarget
from deploy.target import DeviceError
from tests.deploy.jobs.conftest import QUICK, Heard, job_folder, killing, lasting, processes


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


def test_a_power_mode_that_does_not_come_back_stops_no_job_that_takes_what_there_is(
    target: LocalTarget, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sudo").write_text("#!/bin/sh\nexit 0\n")  # and the mode is what it was: none here
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (target.folder / clocks.STORED_MODE).write_text("2")
    told = "power mode 2 comes back only with a reboot"
    assert told in run_job(target, work, Heard(), QUICK)["clocks"]
    with pytest.raises(DeviceError, match=f"{told}.* \\[E_POWER_MODE\\]"):
        run_job(target, replace(work, clocks="locked"), Heard(), QUICK)
    assert (target.folder / clocks.STORED_MODE).exists()


def test_a_job_in_a_power_mode_that_cannot_be_had_measures_nothing(target: LocalTarget, work: Work) -> None:
    heard = Heard()
    with pytest.raises(DeviceError, match=r"this machine has no power modes .* \[E_POWER_MODE\]"):
        run_job(target, replace(work, clocks="mode:1"), heard, QUICK)
    assert "loading" not in heard


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
    slow = lasting(work, 8)  # longer than a busy machine takes to kill it
    with pytest.raises(DeviceError, match="E_LOST"):
        run_job(target, slow, Heard(killing(target, "supervise", signal.SIGKILL)), QUICK)
    heard = Heard()
    assert run_job(target, slow, heard, QUICK)["golden"]["after"]["ok"]
    assert not [text for text in heard if text.startswith("resumed")]


def test_the_device_itself_keeps_the_time_limit(target: LocalTarget, work: Work) -> None:
    with pytest.raises(DeviceError, match=r"not done after 0\.5 s, the limit: take a shorter preset"):
        run_job(target, replace(lasting(work), max_seconds=0.5), Heard(), QUICK)
    assert not processes(target.folder, "profile")


def test_a_second_job_waits_for_the_first(target: LocalTarget, work: Work) -> None:
    heard = Heard()
    waiting = threading.Thread(
        target=run_job, args=(target, lasting(work, 0.1), heard, replace(QUICK, busy_s=60)), daemon=True
    )

    def wait_and_give_way() -> None:
        waiting.start()
        told = "waiting: device board: in use by job profile-"
        wait_until(lambda: any(text.startswith(told) for text in list(heard)), "the second job waits", 60)
        killing(target, "supervise", signal.SIGKILL)()

    with pytest.raises(DeviceError, match="E_LOST"):
        run_job(target, lasting(work), Heard(wait_and_give_way), QUICK)
    waiting.join(60)
    assert heard[-1] == "measured"


def written_down(folder: Path, name: str, environment: str = "") -> Path:
    """An interpreter that writes down what it is started for."""
    (folder / "bin").mkdir()
    path = folder / "bin" / name
    path.write_text(f'#!/bin/sh\necho "$*" >> {folder}/started\n{environment} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def test_every_process_of_a_job_starts_through_the_devices_prefix(
    target: LocalTarget, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an emulator nothing else starts at all."""
    prefixed = replace(target, python=(str(written_down(tmp_path, "emulator")), "-B"))
    assert run_job(prefixed, work, Heard(), QUICK)["golden"]["after"]["ok"]
    started = (tmp_path / "started").read_text()
    for verb in ("missing", "submit", "supervise", "profile", "follow"):
        assert f"-B -I agent.pyz {verb}" in started
    # what the work starts in turn, such as TensorRT's builder, takes the prefix from its environment
    monkeypatch.setenv(interpreter.VARIABLE, json.dumps(prefixed.python))
    with pytest.raises(AgentError, match="no_such_library"):
        child.run_in_child("check_engine", {"library": "no_such_library", "plan": "x", "dla_core": None})
    assert "\n-B -I -c " in (tmp_path / "started").read_text()
    assert interpreter.environment(prefixed.python)[interpreter.VARIABLE] == json.dumps(prefixed.python)


def test_inside_of_a_container_nothing_enters_it_once_more(
    target: LocalTarget, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that is found outside alone starts the agent, which then starts itself."""
    inside = written_down(tmp_path, "enter-box", "PATH=/usr/bin:/bin")
    monkeypatch.setenv("PATH", str(inside.parent), prepend=os.pathsep)
    boxed = replace(target, python=("enter-box",))
    assert run_job(boxed, work, Heard(), QUICK)["golden"]["after"]["ok"]
    started = (tmp_path / "started").read_text()
    assert "agent.pyz submit" in started
    assert "agent.pyz supervise" not in started
