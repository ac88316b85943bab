"""Which disk is full: that of runs, that of temporary files, or neither that can be seen."""

import errno
import shutil
from pathlib import Path

import pytest

from pipeline import disk


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
