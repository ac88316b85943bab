"""One measurement a device at a time, whoever starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import deploy
from afpkd.errors import UserError
from deploy.lock import only_measurement


def silent(text: str, done: int, total: int) -> None:
    raise AssertionError(f"waited: {text}")


def test_a_second_measurement_waits_and_then_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told: list[tuple[str, int, int]] = []
    code = (
        "import sys; from deploy.lock import only_measurement\n"
        "with only_measurement('orin1', print): print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(deploy.__file__).parent.parent,
        env={"TMPDIR": str(tmp_path), "PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        refused = pytest.raises(UserError, match=rf"orin1 is being measured by process {first.pid} on .* since 20")
        with refused, only_measurement("orin1", lambda *event: told.append(event), wait_s=0.01):
            raise AssertionError("two at once")
        ((text, *counts),) = told
        assert text.startswith(f"waiting: device orin1 is being measured by process {first.pid} on ")
        assert counts == [0, 0]
        with only_measurement("local", silent, wait_s=0):  # another device is free
            pass
        first.kill()
    with only_measurement("orin1", silent, wait_s=0):  # and so is this one, though its holder died of SIGKILL
        pass


@pytest.mark.parametrize("written", [None, "", "{}", "[]"])
def test_a_holder_that_has_not_written_its_name_is_another_process(
    written: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: nor is the one before it told, whose name went with its lock."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with only_measurement("orin1", silent):
        pass
    folder = tmp_path / f"afpkd-{os.getuid()}"
    if written is not None:
        (folder / "orin1.json").write_text(written)
    told: list[str] = []
    waited = only_measurement("orin1", lambda *event: told.append(event[0]), wait_s=0)
    refused = pytest.raises(UserError, match="orin1 is being measured by another process: try again")
    with FileLock(folder / "orin1.lock"), refused, waited:
        raise AssertionError("two at once")
    assert told == ["waiting: device orin1 is being measured by another process"]


@pytest.mark.parametrize("whose", ["open to others", "a link", "another user's"])
def test_a_folder_of_locks_that_is_not_this_users_alone_is_refused(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if whose == "another user's":
        monkeypatch.setattr("os.getuid", lambda: 123456)
    folder, elsewhere = tmp_path / f"afpkd-{os.getuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if whose == "a link":
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir(mode=0o700)
    if whose == "open to others":
        folder.chmod(0o777)
    with pytest.raises(UserError, match=r"not this user's alone: .* \[E_FILE\]"), only_measurement("orin1", silent):
        raise AssertionError("locked there")
    assert [*folder.iterdir()] == []
