"""Failures between hosts and a board, through a real sshd; those of the line are in test_transport.py."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from afpkd.record import sha256_of
from bench.loopback import AT_START, Board, python_with
from deploy.agent import PROTOCOL
from deploy.client import call_agent
from deploy.deployment import deploy_bundle
from deploy.devices import open_target
from deploy.pack import agent_archive
from deploy.target import DeviceError
from tests.deploy.jobs.conftest import processes
from tests.deploy.ssh.conftest import lasting, profiled

if TYPE_CHECKING:
    from tests.deploy.conftest import HandMadeBundle

ROOT = Path(__file__).parents[3]
DAY = 86400


@pytest.mark.usefixtures("instant")
def test_how_far_the_boards_clock_is_off_is_recorded_and_changes_nothing(
    board: Board, bundle: HandMadeBundle, tmp_path: Path
) -> None:
    """A board without a battery wakes up in the past."""
    late = f"import time; time.time = (lambda now: lambda: now() - 3 * {DAY})(time.time)\n"
    board.describe(python=python_with(tmp_path / "late", AT_START, late))
    record = profiled(bundle.folder, tmp_path / "row.json")
    assert record["golden"]["after"]["ok"]
    assert record["clock"]["offset_s"] == pytest.approx(-3 * DAY, abs=record["clock"]["within_s"])
    assert 0 < record["clock"]["within_s"] < 60
    board.describe()
    on_time = profiled(bundle.folder, tmp_path / "row.json")["clock"]
    assert on_time["offset_s"] == pytest.approx(0, abs=on_time["within_s"])


@pytest.mark.usefixtures("instant", "impatient")
def test_of_two_hosts_the_second_is_told_who_has_the_board(
    board: Board, bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting(monkeypatch, 600)
    with another_host(board, bundle, tmp_path) as other:
        (row,) = deploy_bundle(bundle.folder, ["board"], precision="fp32", keep=3, progress=lambda *event: None)
        other.kill()
    assert row["error"].startswith("device board: in use by job profile-")
    assert f" of process {other.pid} on " in row["error"]
    assert " since 20" in row["error"]
    assert row["error"].endswith("[E_BUSY]")
    assert not (board.work / "releases").exists()


@pytest.mark.usefixtures("instant", "impatient")
def test_a_killed_host_is_taken_over_where_its_job_is(
    board: Board, bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting(monkeypatch, 8)  # longer than a busy machine takes to look at it
    with another_host(board, bundle, tmp_path) as first:
        supervisor = processes(board.work, "supervise")
        first.kill()
        first.wait()
    assert len(supervisor) == 1
    said: list[str] = []
    record = profiled(bundle.folder, tmp_path / "row.json", lambda text, done, total: said.append(text))
    # A child of the killed host holds its lock, too, until it has come from fork to exec.
    after = [text for text in said if not text.startswith("waiting: ")]
    assert after[0].startswith("resumed: job profile-")
    assert after[0].endswith(" was running there")
    assert said.count("measuring") == 1
    assert record["timing"]["wall_s"] >= 8
    assert not (tmp_path / "never.json").exists()


OTHER_HOST = """
import json, sys
from dataclasses import replace
from pathlib import Path
from deploy import presets
from deploy.measure import profile_bundle
from deploy.presets import Preset, WarmUp
bundle, preset, out = json.loads(sys.argv[1])
presets._PRESETS["instant"] = Preset(**{**preset, "warm_up": WarmUp(**preset["warm_up"])})
profile_bundle(Path(bundle), device="board", precision="fp32", preset="instant", threads=1, out=Path(out),
               recipe="tiny", config_digest="0", progress=lambda text, done, total: print(text, flush=True))
"""


def another_host(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that profiles on the board, and has come to measuring."""
    from dataclasses import asdict

    from deploy.presets import find_preset

    arguments = json.dumps([str(bundle.folder), asdict(find_preset("instant")), str(tmp_path / "never.json")])
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_HOST, arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "measuring\n":
            return process
    raise AssertionError("it ended before it measured")


def test_an_agent_of_another_version_is_refused_and_replaced_at_the_next_contact(board: Board) -> None:
    """A newer host came between: each host puts its own agent there, and neither believes the other's."""
    with open_target(board.device()) as target:
        (board.work / "agent.pyz").write_bytes(agent_of_protocol(PROTOCOL + 1))
        for verb in ("submit", "follow", "missing", "probe", "gc", "status"):
            with pytest.raises(DeviceError) as caught:
                call_agent(target, verb, {})
            assert caught.value.code == "E_PROTOCOL"
            assert f"host speaks protocol {PROTOCOL}, this agent {PROTOCOL + 1}: update the older" in str(caught.value)
    with open_target(board.device()) as target:
        assert call_agent(target, "probe", {})["protocol"] == PROTOCOL


def agent_of_protocol(number: int) -> bytes:
    before, after = f"PROTOCOL = {PROTOCOL}\n", f"PROTOCOL = {number}\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(agent_archive())) as ours, zipfile.ZipFile(buffer, "w") as other:
        assert before in ours.read("agent/__init__.py").decode()
        for name in ours.namelist():
            other.writestr(name, ours.read(name).decode().replace(before, after))
    return buffer.getvalue()


@pytest.mark.usefixtures("instant")
def test_a_blob_that_was_damaged_there_is_sent_again(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    profiled(bundle.folder, tmp_path / "row.json")
    sha256 = sha256_of(bundle.folder / "fp32.onnx")
    damaged = board.work / "blobs" / sha256
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    said: list[str] = []
    record = profiled(bundle.folder, tmp_path / "row.json", lambda text, done, total: said.append(text))
    assert record["golden"]["after"]["ok"]
    assert [text for text in said if text.startswith("sending")] == ["sending fp32.onnx (0.0 MB)"]
    assert sha256_of(damaged) == sha256
