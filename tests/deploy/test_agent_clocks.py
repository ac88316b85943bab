"""The agent's clocks and power mode: set by sudo, put back once, and after a crash at the next contact."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from deploy.agent import cleaning, clocks, jobs, machine
from deploy.agent.errors import AgentError

SUDO = r"""#!/bin/sh
printf '%s\n' "$*" >> "$SUDO_LOG"
[ "$3" = --store ] && { [ -e "$4" ] && exit 9; echo before > "$4"; }
exit ${SUDO_EXIT:-0}
"""


@pytest.fixture
def sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `sudo` that writes down what it is asked; the work folder is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sudo").write_text(SUDO)
    (tmp_path / "bin" / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SUDO_LOG", str(tmp_path / "asked"))
    return tmp_path / "asked"


def test_clocks_are_stored_locked_and_put_back_once(sudo: Path, tmp_path: Path) -> None:
    stored = tmp_path / clocks.STORED
    assert clocks.lock(stored) == "locked"
    assert clocks.restore(stored) is True
    assert clocks.restore(stored) is False
    assert sudo.read_text().splitlines() == [
        f"-n jetson_clocks --store {stored}",
        "-n jetson_clocks",
        f"-n jetson_clocks --restore {stored}",
    ]


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("echo 'sudo: a password is required' >&2", "sudo: a password is required: allow it in sudoers"),
        (
            "echo 'Sorry, user me is not allowed to execute it.' >&2",
            "Sorry, user me is not allowed to execute it.: allow it in sudoers",
        ),
        (
            "echo 'Error! GPU frequency scaling not supported!'; echo",
            "Error! GPU frequency scaling not supported!: try it on the board",
        ),
        ("echo hint; echo first >&2; echo last >&2", "last: try it on the board"),
        ("true", "it failed: try it on the board"),
    ],
)
@pytest.mark.usefixtures("sudo")
def test_a_refusal_leaves_clocks_as_they_are_and_says_whose_it_is(says: str, told: str, tmp_path: Path) -> None:
    """NVIDIA's script says its errors on stdout; only sudo's own are a matter of sudoers."""
    (tmp_path / "bin" / "sudo").write_text(f"#!/bin/sh\n{says}\nexit 1\n")
    assert clocks.lock(tmp_path / clocks.STORED).startswith(f"as-is: sudo -n jetson_clocks: {told}")


@pytest.mark.usefixtures("sudo")
def test_a_restore_that_fails_and_exits_0_keeps_what_clocks_there_were(tmp_path: Path) -> None:
    """As NVIDIA's script does: it prints what failed, and ends well."""
    stored = tmp_path / clocks.STORED
    clocks.lock(stored)
    (tmp_path / "bin" / "sudo").write_text("#!/bin/sh\necho 'Error: Failed to restore /sys/x'\necho done\n")
    with pytest.raises(AgentError, match=r"sudo -n jetson_clocks: Error: Failed to restore /sys/x"):
        clocks.restore(stored)
    assert stored.exists()


def test_no_sudo_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    told = clocks.lock(tmp_path / clocks.STORED)
    assert told.startswith("as-is: sudo -n jetson_clocks: ")
    assert told.endswith(": allow it in sudoers, or set clocks = as-is")


@pytest.mark.usefixtures("sudo")
def test_a_tool_that_does_not_end_is_its_own_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is root's: to end it is refused, and who waits for its end waits for ever."""
    (tmp_path / "bin" / "sudo").write_text("#!/bin/sh\nexec sleep 5\n")
    monkeypatch.setattr(clocks, "_SECONDS", 0.2)
    monkeypatch.setattr(subprocess.Popen, "kill", lambda _: pytest.fail("root's"))
    begun = time.monotonic()
    assert clocks.lock(tmp_path / clocks.STORED).startswith("as-is: sudo -n jetson_clocks: no end after 0.2 s: try it")
    assert time.monotonic() - begun < 4


MODES = r"""#!/bin/sh
printf '%s\n' "$*" >> "$SUDO_LOG"
case " ${REFUSED-3} " in *" $4 "*) ;; *) printf 'pmode:%04d\n' "$4" > "$STATUS" ;; esac
exit ${SUDO_EXIT:-0}
"""


@pytest.fixture
def nvpmodel(sudo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `sudo nvpmodel` that sets modes, but for those in REFUSED, which would need a reboot; what it was asked."""
    (tmp_path / "bin" / "sudo").write_text(MODES)
    status = tmp_path / "status"
    status.write_text("pmode:0002 fmode:quiet\n")
    monkeypatch.setenv("STATUS", str(status))
    monkeypatch.setattr(machine, "power_mode", lambda: status.read_text().strip() or None)
    return sudo


def test_a_power_mode_is_set_and_put_back_once(nvpmodel: Path, tmp_path: Path) -> None:
    assert clocks.apply("mode:0", tmp_path) == "mode:0"
    assert clocks.left_changed(tmp_path)
    assert clocks.apply("mode:1", tmp_path) == "mode:1"  # as after a crash: what came first is put back
    assert clocks.put_back(tmp_path) is True
    assert clocks.put_back(tmp_path) is False
    assert not clocks.left_changed(tmp_path)
    assert nvpmodel.read_text().splitlines() == ["-n nvpmodel -m 0", "-n nvpmodel -m 1", "-n nvpmodel -m 2"]
    assert clocks.apply("mode:2", tmp_path) == "mode:2"  # it is that already
    assert not clocks.left_changed(tmp_path)


@pytest.mark.usefixtures("nvpmodel")
def test_a_power_mode_that_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    not_taken = "power mode 3 was not taken over: it may need a reboot: `sudo nvpmodel -m 3` on the board, then"
    assert refused("mode:3", tmp_path).startswith(f"E_POWER_MODE {not_taken}")
    monkeypatch.setenv("SUDO_EXIT", "1")
    told = "E_POWER_MODE power mode 3 was not taken over: sudo -n nvpmodel: it failed: try it on the board"
    assert refused("mode:3", tmp_path).startswith(told)
    (tmp_path / "bin" / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    assert refused("mode:3", tmp_path).startswith("E_SUDO sudo -n nvpmodel: sudo: a password is required")
    monkeypatch.setattr(machine, "power_mode", lambda: None)
    assert refused("mode:1", tmp_path).startswith("E_POWER_MODE this machine has no power modes (nvpmodel)")
    assert not clocks.left_changed(tmp_path)
    assert clocks.apply("as-is", tmp_path) == "as-is"


def refused(policy: str, folder: Path) -> str:
    with pytest.raises(AgentError) as caught:
        clocks.apply(policy, folder)
    return f"{caught.value.code} {caught.value.message}"


WAY_OUT = "power mode 2 comes back only with a reboot: `sudo nvpmodel -m 2` on the board, answer yes"


@pytest.mark.parametrize("code", ["0", "1"])
def test_a_power_mode_that_comes_back_with_a_reboot_alone_stays_noted_and_is_said(
    code: str, nvpmodel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Orin NX: up at once, down not; whatever nvpmodel's exit code is."""
    assert clocks.apply("mode:0", tmp_path) == "mode:0"
    monkeypatch.setenv("REFUSED", "2")
    monkeypatch.setenv("SUDO_EXIT", code)
    for ask in (
        lambda: clocks.put_back(tmp_path),
        lambda: jobs.restore({}),
        lambda: cleaning.collect({"all": True}),
        lambda: clocks.put_back_before("locked", tmp_path),
    ):
        with pytest.raises(AgentError, match=f"{WAY_OUT}$") as caught:
            ask()
        assert caught.value.code == "E_POWER_MODE"
    for policy in ("as-is", "mode:1"):
        clocks.put_back_before(policy, tmp_path)
    assert clocks.apply("as-is", tmp_path) == f"as-is: the power mode of an earlier job is still set: {WAY_OUT}"
    assert clocks.apply("mode:1", tmp_path) == "mode:1"
    assert (tmp_path / clocks.STORED_MODE).read_text() == "2"
    asked = nvpmodel.read_text()
    (tmp_path / "status").write_text("pmode:0002\n")  # rebooted
    assert clocks.left_changed(tmp_path)
    assert clocks.apply("as-is", tmp_path) == "as-is"
    assert not clocks.left_changed(tmp_path)
    assert nvpmodel.read_text() == asked


@pytest.mark.usefixtures("nvpmodel")
def test_what_counts_is_the_power_mode_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_EXIT", "1")
    assert clocks.apply("mode:0", tmp_path) == "mode:0"
    assert clocks.put_back(tmp_path) is True
    assert not clocks.left_changed(tmp_path)
    assert machine.power_mode() == "pmode:0002"


@pytest.mark.usefixtures("nvpmodel")
def test_a_refused_power_mode_does_not_forget_what_an_earlier_job_left(tmp_path: Path) -> None:
    (tmp_path / clocks.STORED_MODE).write_text("1")
    assert refused("mode:3", tmp_path).startswith("E_POWER_MODE")
    assert clocks.put_back(tmp_path) is True
    assert machine.power_mode() == "pmode:0001"


def test_sudo_that_refuses_the_way_back_is_told_as_that(nvpmodel: Path, tmp_path: Path) -> None:
    assert clocks.apply("mode:0", tmp_path) == "mode:0"
    (nvpmodel.parent / "bin" / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    with pytest.raises(AgentError, match="a password is required: allow it in sudoers") as caught:
        clocks.put_back(tmp_path)
    assert caught.value.code == "E_SUDO"
    assert clocks.left_changed(tmp_path)


@pytest.mark.usefixtures("nvpmodel")
def test_a_power_mode_that_a_crash_left_is_put_back_too() -> None:
    Path(clocks.STORED_MODE).write_text("1")
    assert jobs.restore({}) == {"restored": True}
    assert machine.power_mode() == "pmode:0001"


@pytest.mark.usefixtures("sudo")
def test_what_a_crash_left_is_put_back_at_the_next_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(clocks.STORED).write_text("before")
    monkeypatch.setattr(jobs, "holder", lambda: "job x")
    with pytest.raises(AgentError, match="in use by job x"):
        jobs.restore({})
    monkeypatch.setattr(jobs, "holder", lambda: None)
    assert jobs.restore({}) == {"restored": True}
    assert jobs.restore({}) == {"restored": False}


def test_gc_all_puts_clocks_back_before_it_forgets_what_they_were(sudo: Path) -> None:
    Path(clocks.STORED).write_text("before")
    Path("agent.pyz").write_text("x")
    cleaning.collect({"all": True})
    assert sudo.read_text().splitlines() == [f"-n jetson_clocks --restore {clocks.STORED}"]
    assert not clocks.left_changed(Path())
    assert not Path("agent.pyz").exists()


def test_gc_all_puts_a_power_mode_back_too(nvpmodel: Path) -> None:
    Path(clocks.STORED_MODE).write_text("1")
    cleaning.collect({"all": True})
    assert nvpmodel.read_text().splitlines() == ["-n nvpmodel -m 1"]
    assert not clocks.left_changed(Path())


@pytest.mark.parametrize(("says", "code"), [("sudo: a password is required", "E_SUDO"), ("Error! x", "E_CLOCKS")])
def test_gc_all_removes_nothing_where_clocks_stay_locked(says: str, code: str, sudo: Path) -> None:
    (sudo.parent / "bin" / "sudo").write_text(f"#!/bin/sh\necho '{says}'\nexit 1\n")
    names = [clocks.STORED, "agent.pyz", ".part-of-a-file"]
    for name in names:
        Path(name).write_text("before")
    with pytest.raises(AgentError, match="mode not put back, nothing was removed: sudo -n jetson_clocks") as caught:
        cleaning.collect({"all": True})
    assert caught.value.code == code
    assert [Path(name).read_text() for name in names] == ["before"] * 3
