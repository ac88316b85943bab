"""A board behind a real sshd, from first contact to the last trace: the verbs, and a profile through it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import deploy
from afpkd.errors import UserError
from afpkd.record import sha256_of
from bench.loopback import Board, command_of, free_port, keygen, wait_until
from deploy.devices import open_target
from deploy.host_keys import add_host_key, fetch_host_key
from deploy.jobs import Patience, send_missing
from deploy.target import DeviceError, LineError
from tests.deploy.ssh.conftest import lasting, profiled

if TYPE_CHECKING:
    from tests.deploy.conftest import HandMadeBundle

ROOT = Path(deploy.__file__).parent.parent


def afpkd(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.usefixtures("instant")
def test_a_profile_through_ssh_is_the_local_one_on_another_machine(
    board: Board, bundle: HandMadeBundle, tmp_path: Path
) -> None:
    there = profiled(bundle.folder, tmp_path / "there.json")
    here = profiled(bundle.folder, tmp_path / "here.json", device="local")
    assert set(there) == set(here)
    assert (there["device"], there["n"], there["top1"]) == ("board", 200, here["top1"])
    assert there["golden"]["after"]["ok"]
    assert there["runtime"]["name"] == "onnxruntime"  # `auto` found no TensorRT
    assert there["clocks"] == "as-is"
    assert there["outputs"] == {"there.npz": sha256_of(tmp_path / "there.npz")}
    with np.load(tmp_path / "there.npz") as ours, np.load(tmp_path / "here.npz") as theirs:
        np.testing.assert_array_equal(ours["logits"], theirs["logits"])
    assert list((board.work / "jobs").iterdir()) == []
    inside = [path for path in board.home.rglob("*") if path.is_file() and board.work not in path.parents]
    assert inside == []  # the work folder is all that is written to, by ONNX Runtime neither
    inodes = {path: path.stat().st_ino for path in [*board.work.glob("blobs/*"), board.work / "agent.pyz"]}
    profiled(bundle.folder, tmp_path / "again.json")
    assert {path: path.stat().st_ino for path in inodes} == inodes  # an unchanged bundle travels once
    assert len(inodes) == 5


@pytest.mark.usefixtures("instant", "impatient")
def test_a_line_that_drops_mid_run_changes_nothing(
    board: Board, bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting(monkeypatch, 2)
    said: list[str] = []

    def drop_once(text: str, done: int, total: int) -> None:
        said.append(text)
        if text == "measuring":
            for session in board.sessions():
                os.kill(session, signal.SIGKILL)

    record = profiled(bundle.folder, tmp_path / "row.json", drop_once)
    assert record["golden"]["after"]["ok"]
    assert record["timing"]["wall_s"] >= 2
    assert said.count("measuring") == 1


@pytest.mark.usefixtures("instant", "impatient")
def test_a_line_that_drops_while_it_waits_is_told_and_taken_up(
    board: Board, bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting(monkeypatch, 2)
    said: list[str] = []
    killers: list[threading.Thread] = []

    def kill_the_follower() -> None:
        wait_until(lambda: followers(board), "the host follows")
        for session in board.sessions():
            os.kill(session, signal.SIGKILL)

    def tell(text: str, done: int, total: int) -> None:
        said.append(text)
        if text == "measuring":
            killers.append(threading.Thread(target=kill_the_follower))
            killers[0].start()

    record = profiled(bundle.folder, tmp_path / "row.json", tell)
    killers[0].join()
    assert record["golden"]["after"]["ok"]
    assert [text for text in said if "[E_DROPPED]: trying again; the job goes on there" in text]


def followers(board: Board) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        if "agent.pyz follow" in command_of(int(path.name)) and (path / "cwd").exists():
            found += [path.name] if (path / "cwd").readlink() == board.work else []
    return found


def test_first_contact_shows_the_key_and_adds_it_when_told(board: Board) -> None:
    board.known_hosts.write_text("# mine, without an end of line")
    expected = subprocess.run(
        ["ssh-keygen", "-lf", str(board.folder / "host_key.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    key = fetch_host_key(board.device())
    assert (key.fingerprint, key.kind, key.known) == (expected, "ssh-ed25519", False)
    assert board.known_hosts.read_text() == "# mine, without an end of line"
    add_host_key(key)
    with open_target(board.device()) as target:
        assert target.run(["echo", "in"], "").stdout == "in\n"
    assert fetch_host_key(board.device()).known
    assert board.known_hosts.read_text().splitlines()[0] == "# mine, without an end of line"


@pytest.mark.parametrize("nowhere", ["/dev/null", "none"])
def test_trust_says_that_ssh_keeps_no_keys(nowhere: str, board: Board) -> None:
    """As many set for boards that all are 192.168.55.1 over USB: what is added there is not there."""
    config = board.folder / "ssh_config"
    kept = config.read_text()
    assert f"UserKnownHostsFile {board.known_hosts}" in kept
    config.write_text(kept.replace(f"UserKnownHostsFile {board.known_hosts}", f"UserKnownHostsFile {nowhere}"))
    with pytest.raises(DeviceError, match=f"ssh keeps no keys: UserKnownHostsFile is {nowhere} for it .* name a file"):
        fetch_host_key(board.device())


def test_an_alias_with_a_command_of_its_own_is_reached(board: Board) -> None:
    config = board.folder / "ssh_config"
    config.write_text(f"RemoteCommand tmux\nRequestTTY force\n{config.read_text()}")
    with open_target(board.device()) as target:
        assert target.run(["echo", "in"], "").stdout == "in\n"


def test_a_hashed_known_host_is_known(board: Board) -> None:
    subprocess.run(["ssh-keygen", "-H", "-f", str(board.known_hosts)], capture_output=True, check=True)
    assert fetch_host_key(board.device()).known


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_machine_is_known_by_another_key_than_ssh_would_ask_for_first(board: Board, kind: str) -> None:
    other = board.folder / "other_key"
    keygen("-t", kind, "-f", other)
    name, key = board.known_hosts.read_text().split()[0], other.with_suffix(".pub").read_text().split()
    board.known_hosts.write_text(f"{name} {key[0]} {key[1]}\n")
    board.stop()
    board.settings = {"HostKey": f"{board.folder / 'host_key'}\nHostKey {other}"}
    board.start()
    found = fetch_host_key(board.device())
    assert (found.kind, found.known) == (key[0], True)
    with open_target(board.device()) as target:
        assert target.run(["echo", "in"], "").stdout == "in\n"
    board.stop()
    board.settings = {}
    board.start()
    changed = r"somebody may be between.* \[E_HOSTKEY\]"
    with pytest.raises(DeviceError, match=changed):
        fetch_host_key(board.device())
    with pytest.raises(LineError, match=changed), open_target(board.device()):
        raise AssertionError("reached")


def test_trust_without_ssh_on_this_machine(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"install OpenSSH's client .* \[E_NO_SSH\]"):
        fetch_host_key(board.device())


def test_trust_never_replaces_a_known_key(board: Board) -> None:
    before = board.known_hosts.read_text()
    board.stop()
    board.new_host_key()
    board.start()
    done = afpkd("devices", "trust", "board")
    assert done.returncode == 2
    assert "somebody may be between" in done.stderr
    assert f"ssh-keygen -R '[127.0.0.1]:{board.port}' -f {board.known_hosts}" in done.stderr
    assert board.known_hosts.read_text() == before


def test_trust_on_the_command_line(board: Board) -> None:
    board.known_hosts.unlink()
    asked = afpkd("devices", "trust", "board")
    assert asked.returncode == 2
    assert not board.known_hosts.exists()
    fingerprint = asked.stderr.split("--fingerprint ")[1].partition("`")[0]
    assert fingerprint.startswith("SHA256:")
    wrong = afpkd("devices", "trust", "board", "--fingerprint", "SHA256:other")
    assert "not SHA256:other: nothing was accepted" in wrong.stderr
    assert not board.known_hosts.exists()
    right = afpkd("devices", "trust", "board", "--fingerprint", fingerprint)
    assert (right.returncode, right.stdout) == (0, f"board: trusted: {fingerprint}\n")
    assert afpkd("devices", "trust", "board").stdout == f"board: known already: {fingerprint}\n"


def test_trust_of_what_does_not_answer(board: Board) -> None:
    board.configure(Port=str(free_port()))
    with pytest.raises(LineError, match="Connection refused"):
        fetch_host_key(board.device())


def test_probe_of_several_devices_tells_one_failure_and_the_rest(board: Board) -> None:
    with (board.folder / "devices.toml").open("a") as file:
        file.write(f'[away]\nhost = "127.0.0.1:{free_port()}"\n')
    done = afpkd("devices", "probe", "away", "board", "local", "--json")
    rows = {row["device"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["away", "board", "local"]
    assert rows["board"]["python"] == rows["local"]["python"]
    assert rows["board"]["runtimes"] == ["onnxruntime"]
    assert rows["away"]["error"].endswith("[E_UNREACHABLE]")
    assert rows["away"]["code"] == "E_UNREACHABLE"
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1


def test_list_needs_no_device(board: Board) -> None:
    board.stop()
    done = afpkd("devices", "list", "--json")
    assert [(row["device"], row["reached"]) for row in json.loads(done.stdout)][-1] == ("board", "lo")
    assert done.returncode == 0


@pytest.mark.usefixtures("instant")
def test_gc_all_leaves_no_trace(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    profiled(bundle.folder, tmp_path / "row.json")
    kept = afpkd("devices", "gc", "board")
    assert "0.0 MB freed, " in kept.stdout
    assert len(list((board.work / "blobs").iterdir())) == 4
    done = afpkd("devices", "gc", "board", "--all")
    assert done.returncode == 0, done.stderr
    assert not board.work.exists()


def test_restore_with_nothing_to_put_back(board: Board) -> None:
    assert afpkd("devices", "restore", "board").stdout == "board: nothing to put back\n"


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_in_numbers_before_anything_is_sent(board: Board, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(small)], check=True)
    try:
        board.describe(workdir=str(small / "work"))
        (tmp_path / "big").write_bytes(bytes(60_000_000))
        with open_target(board.device()) as target:
            big = {sha256_of(tmp_path / "big"): tmp_path / "big"}
            with pytest.raises(DeviceError, match=r"127\.1 MB are needed, 104\.\d MB are free.*\[E_DISK\]"):
                send_missing(target, big, lambda *event: None, Patience())
            assert not list((small / "work").glob("blobs/*"))
            (small / "filler").write_bytes(bytes(50_000_000))
            with pytest.raises(
                DeviceError, match=r"needs 60\.0 MB and 17 MB to spare, 5\d\.\d MB are free.*\[E_DISK\]"
            ):
                target.put(tmp_path / "big", "big")
            assert not list((small / "work").glob(".part-*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.usefixtures("instant")
def test_an_unreachable_device_is_one_line_and_leaves_nothing(
    board: Board, bundle: HandMadeBundle, tmp_path: Path
) -> None:
    board.stop()
    with pytest.raises(UserError, match=r"device board: .*Connection refused.*\[E_UNREACHABLE\]"):
        profiled(bundle.folder, tmp_path / "row.json")
    assert not (tmp_path / "row.json").exists()
