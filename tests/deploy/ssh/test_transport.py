"""OpenSSH's client against a real sshd: what arrives, and how each failure is told."""

from __future__ import annotations

import dataclasses
import getpass
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from afpkd.errors import UserError
from afpkd.record import sha256_of
from bench.loopback import Board, children_of, command_of, free_port, keygen, wait_until
from deploy import ssh
from deploy.devices import open_target
from deploy.jobs import Patience, send_missing
from deploy.ssh import SshTarget
from deploy.target import DeviceError, LineError

RELAY = Path(__file__).with_name("relay.py")


def opened(board: Board) -> SshTarget:
    with open_target(board.device()) as target:
        assert isinstance(target, SshTarget)
        return target


def refused(board: Board) -> LineError:
    with pytest.raises(LineError) as caught, open_target(board.device()):
        raise AssertionError("reached")
    assert str(caught.value).startswith("device board: ")
    assert str(caught.value).endswith(f" [{caught.value.code}]")
    assert "\n" not in str(caught.value)
    return caught.value


def test_files_arrive_byte_for_byte_and_come_back(board: Board, tmp_path: Path) -> None:
    target = opened(board)
    data = bytes(range(256)) * 4096 + b"\r\n\0~.\n"  # ~. would end an interactive ssh
    (tmp_path / "sent").write_bytes(data)
    target.put(tmp_path / "sent", 'deep er/it\'s "so"')
    assert (board.work / "deep er" / 'it\'s "so"').read_bytes() == data
    target.get('deep er/it\'s "so"', tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert (board.work.stat().st_mode & 0o777) == 0o700


def test_no_shell_reads_what_is_run(board: Board) -> None:
    words = ["$(touch made)", "`touch made`", "; touch made", "a b", "'\"", "*", "~", "$HOME", "\\", ""]
    done = opened(board).run(["printf", r"%s\n", *words], "")
    assert done.stdout == "".join(f"{word}\n" for word in words)
    assert not (board.work / "made").exists()


def test_the_agent_works_in_the_work_folder(board: Board) -> None:
    done = opened(board).run(["sh", "-c", "pwd; cat; echo oops >&2; exit 3"], "stdin é\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{board.work}\nstdin é\n", "oops\n")


def test_one_connection_is_shared(board: Board) -> None:
    target = opened(board)
    before = set(children_of(board.process.pid if board.process else 0))
    for _ in range(3):
        target.run(["true"], "")
    assert set(children_of(board.process.pid if board.process else 0)) == before
    assert len(before) == 1


def test_an_unknown_host_key_stops_and_says_how_to_accept_it(board: Board) -> None:
    board.known_hosts.unlink()
    error = refused(board)
    assert (error.code, error.lasting) == ("E_HOSTKEY", True)
    assert "`afpkd devices trust board`" in str(error)
    assert not board.known_hosts.exists()
    assert not board.work.exists()


def test_a_changed_host_key_stops_and_says_the_way_out(board: Board) -> None:
    board.stop()
    board.new_host_key()
    board.start()
    error = refused(board)
    assert (error.code, error.lasting) == ("E_HOSTKEY", True)
    assert "CHANGED (it is now SHA256:" in str(error)
    assert f"remove line 1 of {board.known_hosts}" in str(error)


def test_a_user_who_may_not_log_in(board: Board) -> None:
    board.describe(host=f"nobody-of-that-name@127.0.0.1:{board.port}")
    with (board.folder / "ssh_config").open("a") as file:
        file.write(
            f"Host 127.0.0.1\n  UserKnownHostsFile {board.known_hosts}\n  IdentityFile {board.folder}/user_key\n"
        )
    error = refused(board)
    assert (error.code, error.lasting) == ("E_AUTH", True)
    assert "nobody-of-that-name@127.0.0.1: Permission denied (publickey" in str(error)


def test_a_key_that_is_not_accepted_asks_for_no_password(board: Board) -> None:
    (board.folder / "user_key").unlink()
    keygen("-t", "ed25519", "-f", board.folder / "other_key")
    board.configure(IdentityFile=str(board.folder / "other_key"))
    error = refused(board)
    assert error.code == "E_AUTH"
    assert "passwords are never used" in str(error)


def test_nobody_listens(board: Board) -> None:
    board.configure(Port=str(free_port()))
    error = refused(board)
    assert (error.code, error.lasting) == ("E_UNREACHABLE", False)
    assert "Connection refused: is it on, and does sshd listen there?" in str(error)


def test_a_host_nobody_knows(board: Board) -> None:
    board.configure(HostName="no-such-host.invalid")
    assert "Could not resolve hostname no-such-host.invalid" in str(refused(board))


def test_a_broken_configuration_is_not_tried_again(board: Board) -> None:
    board.configure(NoSuchOption="yes")
    error = refused(board)
    assert (error.code, error.lasting) == ("E_CONFIG", True)


def test_banners_and_chatty_shells_do_not_spoil_anything(board: Board, tmp_path: Path) -> None:
    """Login scripts print on stdout, banners on stderr, neither always in UTF-8."""
    board.stop()
    (tmp_path / "banner").write_bytes(b"Zugang f\xfcr Befugte \xff\xfe\n")
    (tmp_path / "chatty").write_bytes(b'#!/bin/sh\nprintf "willkommen \\374\\n{\\n"\neval "$SSH_ORIGINAL_COMMAND"\n')
    (tmp_path / "chatty").chmod(0o755)
    board.settings = {"Banner": str(tmp_path / "banner"), "ForceCommand": str(tmp_path / "chatty")}
    board.start()
    target = opened(board)
    (tmp_path / "sent").write_bytes(b"\0\xff\n" * 1000)
    target.put(tmp_path / "sent", "a")
    target.get("a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "sent").read_bytes()
    assert "willkommen" in target.run(["true"], "").stdout


def test_what_does_not_arrive_whole_is_not_taken(board: Board, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(b"x" * 1000)
    target = opened(board)
    target.put(tmp_path / "sent", "a")
    board.stop()
    board.settings = {"ForceCommand": 'sh -c "$SSH_ORIGINAL_COMMAND" | head -c -7'}
    board.start()
    with pytest.raises(LineError, match=r"a: it did not arrive whole: try again \[E_DROPPED\]"):
        target.get("a", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with pytest.raises(LineError, match=r"the answer to put: it did not arrive whole"):
        target.put(tmp_path / "sent", "a")


def test_a_jump_host_of_the_users_configuration_is_gone_through(board: Board, tmp_path: Path) -> None:
    config = board.folder / "ssh_config"
    inner = config.read_text().replace("Host lo\n", "Host inner\n") + "  ProxyJump lo\n"
    config.write_text(config.read_text() + inner)
    board.describe(host="inner")
    (tmp_path / "sent").write_bytes(b"through")
    opened(board).put(tmp_path / "sent", "there")
    assert (board.work / "there").read_bytes() == b"through"
    assert len(children_of(board.process.pid if board.process else 0)) == 2


def test_a_user_and_port_in_the_host_are_used(board: Board) -> None:
    with (board.folder / "ssh_config").open("a") as file:
        file.write(
            f"Host 127.0.0.1\n  UserKnownHostsFile {board.known_hosts}\n  IdentityFile {board.folder}/user_key\n"
        )
    board.describe(host=f"{getpass.getuser()}@127.0.0.1:{board.port}")
    assert opened(board).run(["echo", "here"], "").stdout == "here\n"


def through_relay(board: Board, *, rate: float = 0, limit: int = 0, times: int = 0) -> None:
    """Let the client go through `relay.py`, which is slow, or drops the line `times` times after `limit` bytes."""
    (board.folder / "drops").write_text(str(times))
    words = [sys.executable, RELAY, board.port, rate, limit, board.folder / "drops"]
    board.configure(ProxyCommand=" ".join(map(str, words)))


def quick() -> Patience:
    return Patience(pauses_s=(0.05,), line_s=20)


def test_a_line_that_drops_mid_upload_is_taken_up_again(board: Board, tmp_path: Path) -> None:
    opened(board)  # the agent is there
    opened(board).close()
    through_relay(board, limit=1_000_000, times=2)
    data = os.urandom(3_000_000)
    (tmp_path / "big").write_bytes(data)
    target = opened(board)
    sha256 = sha256_of(tmp_path / "big")
    send_missing(target, {sha256: tmp_path / "big"}, lambda *event: None, quick())
    assert (board.folder / "drops").read_text() == "0"
    assert [path.name for path in (board.work / "blobs").iterdir()] == [sha256]  # and nothing half
    assert (board.work / "blobs" / sha256).read_bytes() == data


def test_a_line_that_always_drops_is_given_up(board: Board, tmp_path: Path) -> None:
    opened(board).close()
    through_relay(board, limit=1_000_000, times=99)
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    with pytest.raises(LineError, match=r"the line ended \(.*\) \[E_DROPPED\]"):
        send_missing(opened(board), {"a" * 64: tmp_path / "big"}, lambda *event: None, quick())
    wait_until(lambda: not list((board.work / "blobs").iterdir()), "the half file is removed")


def test_a_slow_link_is_waited_for(board: Board, tmp_path: Path) -> None:
    through_relay(board, rate=400_000)
    target = opened(board)
    (tmp_path / "sent").write_bytes(os.urandom(1_000_000))
    target.put(tmp_path / "sent", "slow")
    assert (board.work / "slow").read_bytes() == (tmp_path / "sent").read_bytes()


def test_a_command_that_hangs_there_is_given_up(board: Board) -> None:
    target = opened(board)
    hanging = SshTarget(name="board", python=target.python, address=target.address, folder=target.folder, timeout_s=0.5)
    with pytest.raises(LineError, match=r"no answer for 0\.5 s.*\[E_DROPPED\]"):
        hanging.run(["sleep", "30"], "")
    assert hanging.run(["sleep", "1"], "", brief=False).returncode == 0  # what takes its time is waited for
    mute = dataclasses.replace(hanging, python=("sh", "-c", "sleep 30"))  # connects, and then says nothing
    with pytest.raises(LineError, match=r"no answer for 0\.5 s"):
        mute.transfer("hello", {"agent": "x"})


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_line_that_ends_or_goes_dead_while_a_command_runs(board: Board, fate: signal.Signals) -> None:
    target = opened(board)

    def end_it() -> None:
        wait_until(lambda: any("sleep 30" in command_of(p) for s in board.sessions() for p in children_of(s)), "runs")
        for session in board.sessions():
            os.kill(session, fate)

    ending = threading.Thread(target=end_it)
    ending.start()
    with pytest.raises(LineError, match="E_DROPPED") as caught:
        target.run(["sleep", "30"], "")
    ending.join()
    assert not caught.value.lasting
    assert target.run(["echo", "again"], "").stdout == "again\n"


def test_no_interpreter_there(board: Board) -> None:
    board.describe(python="/nowhere/python3")
    with pytest.raises(
        DeviceError, match=r"/nowhere/python3 does not start there.*set the device's python \[E_PYTHON\]"
    ):
        opened(board)


def test_an_interpreter_that_is_too_old(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_OLDEST_PYTHON", (3, 99))
    with pytest.raises(DeviceError, match=r"Python 3\.\d+\.\d+ is too old, 3\.99 is needed.*\[E_PYTHON\]"):
        opened(board)


def test_a_home_that_cannot_be_written_to(board: Board) -> None:
    board.describe(workdir="/proc/afpkd")
    with pytest.raises(DeviceError, match=r"cannot write in /proc/afpkd: .*name another workdir.*\[E_WORKDIR\]"):
        opened(board)


def test_a_relative_work_folder_is_in_the_home_and_a_tilde_too(board: Board) -> None:
    board.describe(workdir="a/b")
    assert opened(board).folder == str(board.home / "a" / "b")
    board.describe(workdir="~/c d")
    assert opened(board).folder == str(board.home / "c d")


def test_no_ssh_on_this_machine(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="install OpenSSH's client"):
        opened(board)
