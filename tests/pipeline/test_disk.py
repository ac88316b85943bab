"""Which disk is full: that of runs, that of temporary files, or neither that can be seen."""

import errno
import shutil
import sys
from pathlib import Path

import pytest

from afpkd.errors import UserError
from pipeline import disk
from pipeline.cli import main


@pytest.mark.parametrize(
    ("low", "said"),
    [
        ({"runs", "temporary"}, "runs: the disk is full (0.0 MB free): make room, then"),
        ({"temporary"}, "temporary: the disk is full (0.0 MB free): make room or set TMPDIR, then"),
        (set(), "runs: a disk or a quota is full (0.0 MB free): make room, then"),
    ],
)
def test_the_disk_that_is_full_is_named(
    low: set[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("runs", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(disk, "nearly_full", lambda folder: folder.name in low)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    error = disk.explained(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "runs")
    assert str(error).startswith(str(tmp_path / said))


@pytest.mark.parametrize(
    "words",
    [
        "run distill --runs /proc/afpkd",
        "train-teacher --recipe default --runs /proc/afpkd",
        "sweep default --set distill.epochs=1,2 --runs /proc/afpkd",
        "devices agent /proc/afpkd/agent.pyz",
    ],
)
def test_where_nothing_can_be_made_is_one_line(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["afpkd", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert told[-1] == "error: /proc/afpkd: nothing can be made there: name another place [E_FILE]"
    assert [line for line in told if "Traceback" in line] == []


def test_a_file_that_is_not_there_is_a_fault_of_ours(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "no", str(tmp_path / "record.json")), FileNotFoundError(2, "no", 3)):
        assert not isinstance(disk.explained(error, tmp_path), UserError)
