"""A disk that is full, really (a small tmpfs), at each stage: one line, nothing lost; with room again it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from afpkd.checkpoint import load_weights
from afpkd.errors import UserError
from afpkd.record import sha256_of
from pipeline import disk
from pipeline.cli import main
from pipeline.lineage import lineage
from tests.tiny import FEW, FP32, tiny_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root"),
]
STAGES = (
    ["train-teacher"],
    ["tune-prompts"],
    ["train-student"],
    ["train-undistilled"],
    ["export", "--role", "student"],
    ["profile", "--role", "student"],
    ["report"],
)
SPARE_BYTES = 12_000  # for the lock and an event: what a stage leaves does not fit


@pytest.fixture(name="small")
def _small(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        (folder / "tiny.toml").write_text(tiny_recipe(more=FP32))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(name="run_verb")
def _run_verb(small: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*words: str) -> int:
        options = ["--recipe", str(small / "tiny.toml"), "--runs", str(small / "runs")]
        monkeypatch.setattr(sys, "argv", ["afpkd", *words, *options])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return run


def fill(folder: Path, spare_bytes: int = SPARE_BYTES) -> Path:
    filler = folder / "filler"
    with filler.open("wb") as file:
        room = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        file.write(bytes(max(0, room - spare_bytes)))
    return filler


def finished(small: Path) -> dict[Path, str]:
    """What records and weights there are, by hash."""
    found = [path for pattern in ("*.json", "*.safetensors") for path in (small / "runs").rglob(pattern)]
    return {path: sha256_of(path) for path in found if not path.name.startswith(".")}


def test_each_stage_ends_in_one_line_keeps_what_was_and_goes_on_when_there_is_room(
    small: Path, run_verb: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in STAGES:
        before, filler = finished(small), fill(small)
        capsys.readouterr()
        assert run_verb(*words) == 2, words
        told = capsys.readouterr().err
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, told
        assert "the disk is full" in errors[0]
        assert "make room, then give the same command again" in errors[0]
        assert "Traceback" not in told
        kept = finished(small)
        assert {path: kept.get(path) for path in before} == before, words
        if words[0] not in ("train-teacher",):
            assert lineage(small / "runs" / "tiny").faults == [], words
        filler.unlink()
        assert run_verb(*words) == 0, capsys.readouterr().err
    assert lineage(small / "runs" / "tiny").faults == []


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint_keeps_the_one_before(
    small: Path, run_verb: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first epoch's fits, the second's not: it is written beside the first, which stays until it is whole."""
    (small / "tiny.toml").write_text(tiny_recipe(heldout=FEW, teacher_epochs=3, more=FP32))
    spare_bytes = 1_400_000
    filler, folder = fill(small, spare_bytes), small / "runs" / "tiny" / "teacher"
    assert run_verb("train-teacher") == 2
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, told
    assert "the disk is full" in errors[0]
    assert "Traceback" not in told
    kept = folder / "checkpoint.pt"
    assert spare_bytes / 2 < kept.stat().st_size < spare_bytes, "two of them do not fit, one does"
    state = torch.load(kept, weights_only=True)
    assert (len(state["history"]), state["history"][0]["epoch"]) == (1, 1)
    assert [path.name for path in folder.glob(".*")] == [], "nothing of the second is left"
    filler.unlink()
    assert run_verb("train-teacher") == 0
    told = capsys.readouterr().err
    assert f"continues at step {state['step']} of {3 * state['step']}" in told
    assert not kept.exists()


def test_a_whole_run_says_so_too(small: Path) -> None:
    """Where not even the events of the stages can be written."""
    command = [sys.executable, "-m", "pipeline", "run", "distill", "--recipe", str(small / "tiny.toml")]
    command += ["--runs", str(small / "runs"), "--train-device", "cpu"]
    fill(small)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_says_itself_what_it_is(tmp_path: Path) -> None:
    """Also one that quotes a broken file, or comes from it: that disk is not full."""
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError) as caught:
        load_weights(torch.nn.Linear(1, 1), tmp_path / "broken.pt")
    assert caught.value.__context__ is not None
    quoting = UserError(
        "E_WEIGHTS_FILE", "x.pt: [enforce fail at inline_container.cc:1] . unexpected pos: No space left on device"
    )
    for error in (caught.value, quoting):
        assert not disk.is_full(error)
        assert disk.explained(error, tmp_path) is error
    assert not disk.is_full(RuntimeError("PytorchStreamReader failed reading zip archive (inline_container.cc:9)"))
    assert not disk.is_full(RuntimeError("2 threads were requested and 1 is there"))
    assert isinstance(disk.explained(OSError(28, "No space left on device"), tmp_path), UserError)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (OSError("1000 requested and 12 written"), True),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0"), True),
        (OSError(13, "Permission denied"), False),
        (ValueError("a disk is not full"), False),
    ],
)
def test_what_says_that_a_disk_is_full(error: Exception, full: bool) -> None:
    assert disk.is_full(error) == full
    wrapped = RuntimeError("broken")
    wrapped.__cause__ = error
    assert disk.is_full(wrapped) == full


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied: check the path, its owner"),
        (OSError(30, "Read-only file system", "/x"), "/x: Read-only file system: check the path, its owner"),
        (FileExistsError(17, "File exists", "/x"), "/x: File exists: a file lies where a folder is needed"),
        (NotADirectoryError(20, "Not a directory", "/x"), "/x: Not a directory: a file lies where a folder is needed"),
    ],
)
def test_a_path_that_is_refused_is_one_line(error: OSError, mend: str, tmp_path: Path) -> None:
    told = disk.explained(error, tmp_path)
    assert isinstance(told, UserError)
    assert told.code == "E_FILE"
    assert told.message.startswith(mend)


@pytest.mark.parametrize("error", [PermissionError(1, "kill"), FileNotFoundError(2, "no", "/x"), ValueError("/x")])
def test_a_fault_of_ours_stays_one(error: Exception, tmp_path: Path) -> None:
    assert disk.explained(error, tmp_path) is error
