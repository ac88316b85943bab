"""The agent's store, its cleaning, and the program that moves files before the agent is there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy import ssh
from deploy.agent import cleaning, jobs, machine, store, transfer
from deploy.agent.engine_cache import EngineCache
from deploy.agent.errors import AgentError


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blobs").mkdir()
    return tmp_path


def added(data: bytes, age_s: float = 0) -> str:
    """Put a blob into the store, as old as told."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = Path("blobs") / sha256
    path.write_bytes(data)
    os.utime(path, (time.time() - age_s,) * 2)
    return sha256


@pytest.mark.usefixtures("work")
def test_only_what_is_missing_or_damaged_is_asked_for() -> None:
    here, damaged, absent = added(b"here"), added(b"damaged"), "a" * 64
    (Path("blobs") / damaged).write_bytes(b"damagee")
    asked = {here: 4, damaged: 7, absent: 5}
    assert store.missing({"files": asked, "budget_bytes": 0}) == {"missing": sorted([damaged, absent])}


@pytest.mark.usefixtures("work")
def test_room_is_made_by_dropping_what_nothing_uses_but_not_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, used = added(b"wanted"), added(b"used")
    added(b"unused")
    os.link(Path("blobs") / used, "in-a-job")
    Path("engines").mkdir()
    Path("engines/an.engine").write_bytes(b"engine")
    free = iter([0, 10**12])
    monkeypatch.setattr(store, "free_bytes", lambda: next(free))
    store.missing({"files": {wanted: 6, "b" * 64: 10}, "budget_bytes": 10**9})
    assert {path.name for path in Path("blobs").iterdir()} == {wanted, used}
    assert list(Path("engines").iterdir()) == []


@pytest.mark.usefixtures("work")
def test_the_engine_that_a_release_predicts_with_stays() -> None:
    """Else it would wait minutes for a new one, at its next start."""
    kept = EngineCache(Path("engines"))
    identities = [{"onnx_sha256": name * 64, "options": {"batch": 1}} for name in "ab"]
    for identity in identities:
        kept.scratch_path(identity).write_bytes(b"an engine")
        kept.add(identity, {})
    folders = {name: Path("releases") / name for name in ("whole", "onnxruntime", "damaged", "empty", "list")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    facts = {"runtime_facts": {"name": "tensorrt", "engine": {"identity": identities[0]}}}
    (folders["whole"] / "release.json").write_text(json.dumps(facts))
    (folders["onnxruntime"] / "release.json").write_text(json.dumps({"runtime_facts": {"name": "onnxruntime"}}))
    (folders["damaged"] / "release.json").write_text(json.dumps(facts)[:-1])
    (folders["list"] / "release.json").write_text("[]")
    store.drop_unused(0)
    assert sorted(path.suffix for path in Path("engines").iterdir()) == [".engine", ".json"]
    assert kept.missing(identities[0]) is None
    shutil.rmtree(folders["whole"])  # as the oldest release goes
    store.drop_unused(0)
    assert list(Path("engines").iterdir()) == []


@pytest.mark.usefixtures("work")
def test_a_disk_that_stays_full_is_told_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "free_bytes", lambda: 1_000_000)
    with pytest.raises(AgentError, match=r"117\.1 MB are needed, 1\.0 MB are free even without files") as caught:
        store.missing({"files": {"c" * 64: 50_000_000}, "budget_bytes": 10**9})
    assert caught.value.code == "E_DISK"


@pytest.mark.usefixtures("work")
def test_the_budget_drops_the_least_recently_used_first() -> None:
    old, middle, new = added(b"1" * 100, 300), added(b"2" * 100, 200), added(b"3" * 100, 100)
    assert store.drop_unused(250) == 100
    assert {path.name for path in Path("blobs").iterdir()} == {middle, new}
    assert store.drop_unused(250) == 0
    assert old not in (middle, new)


@pytest.mark.usefixtures("work")
def test_the_budget_is_kept_at_every_contact_but_not_at_the_cost_of_what_is_wanted() -> None:
    wanted, _, new = added(b"1" * 100, 300), added(b"2" * 100, 200), added(b"3" * 100, 100)
    assert store.missing({"files": {wanted: 100}, "budget_bytes": 150}) == {"missing": []}
    assert {path.name for path in Path("blobs").iterdir()} == {wanted, new}


@pytest.mark.usefixtures("work")
def test_files_are_linked_not_copied_and_count_as_used() -> None:
    sha256 = added(b"data", 500)
    store.link_into(Path("job"), {"bundle/x": sha256})
    assert Path("job/bundle/x").samefile(f"blobs/{sha256}")
    assert time.time() - (Path("blobs") / sha256).stat().st_mtime < 60


@pytest.mark.usefixtures("work")
def test_where_there_are_no_links_files_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, destination: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store.link_into(Path("job"), {"x": added(b"data")})
    assert Path("job/x").read_bytes() == b"data"


def ended_job(name: str, age_s: float, state: str = "done") -> Path:
    folder = Path("jobs") / f"profile-{name * 16}"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"id": folder.name, "verb": "profile", "host": "h", "boot_id": "b"}))
    (folder / "result.json").write_text(json.dumps({"state": state}))
    os.utime(folder, (time.time() - age_s,) * 2)
    return folder


@pytest.mark.usefixtures("work")
def test_gc_drops_old_jobs_lost_uploads_and_what_is_over_budget() -> None:
    old, new = ended_job("a", 1000), ended_job("b", 10)
    blob, partial, fresh = added(b"x" * 50), Path("blobs/.part-old"), Path("blobs/.part-new")
    partial.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(partial, (0, 0))
    answer = cleaning.collect({"all": False, "older_than_s": 500, "budget_bytes": 0})
    assert not old.exists()
    assert new.exists()
    assert not (Path("blobs") / blob).exists()
    assert not partial.exists()
    assert fresh.exists()  # somebody may be sending it
    assert answer["freed_bytes"] >= 54


@pytest.mark.usefixtures("work")
def test_gc_all_leaves_nothing_of_ours_and_all_that_is_not(work: Path) -> None:
    ended_job("a", 0)
    added(b"blob")
    for name in ("agent.pyz", "device.lock"):
        Path(name).write_text("x")
    Path("releases/1").mkdir(parents=True)
    Path("current").symlink_to("releases/1")
    Path("thesis.txt").write_text("years of work")
    answer = cleaning.collect({"all": True})
    assert [path.name for path in work.iterdir()] == ["thesis.txt"]
    assert answer["kept_bytes"] == 0
    assert answer["freed_bytes"] > 0
    Path("thesis.txt").unlink()
    cleaning.collect({"all": True})
    assert not work.exists()


@pytest.mark.usefixtures("work")
def test_gc_all_stops_before_a_running_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "holder", lambda: "job x of y")
    added(b"blob")
    with pytest.raises(AgentError, match="in use by job x of y: nothing was removed"):
        cleaning.collect({"all": True})
    assert len(list(Path("blobs").iterdir())) == 1


def transferred(work: Path, *, data: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes]:
    """Run the program that moves files, as ssh would."""
    asked = {"mark": "<mark>", "workdir": str(work), **request}
    head = f"{json.dumps(ssh._program())}\n{json.dumps(asked)}\n".encode()
    done = subprocess.run(
        [sys.executable, "-I", "-c", ssh._BOOTSTRAP], input=head + data, capture_output=True, check=True
    )
    line, _, rest = done.stdout.partition(b"<mark>")[2].partition(b"\n")
    return json.loads(line), rest


def test_a_file_gets_its_name_only_with_the_right_bytes(work: Path) -> None:
    announced: dict[str, Any] = {
        "operation": "put",
        "name": "new/file",
        "size": 4,
        "sha256": hashlib.sha256(b"good").hexdigest(),
    }
    for sent in (b"evil", b"goo", b""):
        answer, _ = transferred(work, data=sent, **announced)
        assert answer["error"]["code"] == "E_CORRUPT"
        assert list((work / "new").iterdir()) == []
    answer, _ = transferred(work, data=b"good and what follows", **announced)
    assert "error" not in answer
    assert (work / "new" / "file").read_bytes() == b"good"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "."])
def test_nothing_outside_the_work_folder_is_written_or_read(work: Path, name: str) -> None:
    facts: dict[str, Any] = {"name": name, "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    for operation in ("put", "get"):
        answer, _ = transferred(work, operation=operation, **facts)
        assert answer["error"]["code"] == "E_NAME"


def test_a_missing_file_is_told(work: Path) -> None:
    answer, _ = transferred(work, operation="get", name="nothing")
    assert answer["error"]["code"] == "E_FILE"
    assert answer["error"]["message"].endswith("nothing: No such file or directory")


def test_the_program_starts_under_the_python_of_an_old_board(work: Path) -> None:
    """JetPack 4 has Python 3.6, which cannot run the agent, and must be told so rather than fail."""
    import ast

    from deploy.agent import transfer

    ast.parse(Path(transfer.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))
    answer, _ = transferred(work, operation="hello", agent="agent.pyz")
    assert answer["python"] == list(sys.version_info[:3])
    assert answer["agent_sha256"] is None


def test_an_agent_is_taken_where_nothing_else_is_so_that_disk_can_be_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(f_bavail=1000, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    sha256 = hashlib.sha256(b"agent").hexdigest()
    for name in ("agent.pyz", "blobs/x"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"agent")))
        request = {"name": name, "size": 5, "sha256": sha256}
        if name == "agent.pyz":
            assert transfer._put(tmp_path, request) == {"sha256": sha256}
        else:
            with pytest.raises(transfer._RefusedError, match="17 MB to spare"):
                transfer._put(tmp_path, request)


def test_a_job_lost_on_a_full_disk_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"boot_id": machine.boot_id()}))
    assert "the agent there was killed" in jobs._result(tmp_path)["error"]["message"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    assert "its disk ran full while the job ran" in jobs._result(tmp_path)["error"]["message"]
