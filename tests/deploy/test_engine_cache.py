"""Engines are kept by all they depend on, checked before they are touched, and built anew with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.agent import deployment, engine_cache, fake_cuda, machine, predict, vitals
from deploy.agent.bundle import Bundle
from deploy.agent.engine_cache import EngineCache
from deploy.agent.errors import AgentError
from tests.deploy.conftest import HandMadeBundle
from tests.deploy.fakes import Install, expected, failure, images, load

GOLDEN_FACTS = ("max_abs", "cosine", "argmax_agreement")

IDENTITY: dict[str, Any] = {
    "onnx_sha256": "a" * 64,
    "options": {"precision": "fp16", "batch": 1},
    "tensorrt": {"name": "tensorrt", "version": "10.3.0"},
    "board": "NVIDIA Orin",
    "power_mode": None,
}


@pytest.fixture
def filled(cache: Path) -> EngineCache:
    kept = EngineCache(cache)
    kept.scratch_path(IDENTITY).write_bytes(b"an engine")
    kept.add(IDENTITY, {"typing": "strong"})
    return kept


def test_what_was_added_is_found_with_its_record(filled: EngineCache) -> None:
    assert filled.missing(IDENTITY) is None
    assert filled.plan_path(IDENTITY).read_bytes() == b"an engine"
    assert filled.record(IDENTITY)["built"] == {"typing": "strong"}
    assert sorted(path.suffix for path in filled.folder.iterdir()) == [".engine", ".json"]  # nothing is left over


@pytest.mark.parametrize("key", list(IDENTITY))
def test_each_part_of_the_identity_makes_another_engine(key: str, filled: EngineCache) -> None:
    other = {**IDENTITY, key: "another"}
    assert filled.missing(other) is not None
    assert filled.plan_path(other) != filled.plan_path(IDENTITY)


def test_the_reason_names_all_that_changed_since_the_newest_of_the_same_file(filled: EngineCache) -> None:
    tensorrt = {"name": "tensorrt", "version": "10.16.2"}
    changed = {**IDENTITY, "tensorrt": tensorrt, "power_mode": "pmode:0001"}
    expected_reason = "power_mode was None, is pmode:0001; tensorrt version was 10.3.0, is 10.16.2"
    assert filled.missing(changed) == expected_reason
    assert filled.missing({**IDENTITY, "onnx_sha256": "b" * 64}) == "never built here"


@pytest.mark.parametrize("data", [b"an engin", b"an engine!", b"An engine", b""])
def test_changed_bytes_are_seen(data: bytes, filled: EngineCache) -> None:
    filled.plan_path(IDENTITY).write_bytes(data)
    reason = filled.missing(IDENTITY)
    assert reason is not None
    assert "are not those of its record" in reason


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"identity": {**IDENTITY, "board": "x"}})])
def test_a_broken_or_foreign_record_vouches_for_nothing(text: str, filled: EngineCache) -> None:
    filled.plan_path(IDENTITY).with_suffix(".json").write_text(text)
    reason = filled.missing(IDENTITY)
    assert reason is not None
    assert "not a record of this engine" in reason


def test_a_record_without_its_engine_or_an_engine_without_its_record_is_missing(filled: EngineCache) -> None:
    plan = filled.plan_path(IDENTITY)
    plan.rename(plan.with_suffix(".away"))
    assert "No such file" in str(filled.missing(IDENTITY))
    plan.with_suffix(".away").rename(plan)
    plan.with_suffix(".json").unlink()
    assert filled.missing(IDENTITY) == "never built here"


def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3")
    cache.write_text("a file")
    error = failure(onnx_path, cache / "below")
    assert error.code == "E_CACHE"
    assert "name another: a board's workdir, XDG_CACHE_HOME" in error.message


def test_a_build_that_fails_half_way_leaves_nothing(
    install: Install, onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        Path(arguments["plan"]).write_bytes(b"half an engi")
        raise AgentError("E_CRASH", f"{operation}: killed")

    install("10.3")
    monkeypatch.setattr("deploy.agent.ready_engine.run_in_child", full_disk)
    assert failure(onnx_path, cache).code == "E_CRASH"
    assert list(cache.iterdir()) == []


def test_a_second_load_takes_the_engine_from_the_cache(install: Install, onnx_path: Path, cache: Path) -> None:
    install("10.3")
    first, second = load(onnx_path, cache), load(onnx_path, cache)
    assert first.describe()["engine"]["built_because"] == "never built here"
    assert second.describe()["engine"] == {**first.describe()["engine"], "built_because": None}
    np.testing.assert_array_equal(second.infer(images(2)), expected(onnx_path, images(2)))


def test_an_engine_of_another_release_is_never_touched_and_the_reason_is_told(
    install: Install, onnx_path: Path, cache: Path
) -> None:
    install("10.3")
    load(onnx_path, cache)
    install("10.16")
    engine = load(onnx_path, cache).describe()["engine"]
    assert engine["built_because"] == "tensorrt version was 10.3.0, is 10.16.1.11"


def test_another_power_mode_board_gpu_or_batch_is_another_engine(
    install: Install, onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.3")
    reasons = [load(onnx_path, cache).describe()["engine"]["built_because"]]
    monkeypatch.setattr(machine, "power_mode", lambda: "pmode:0002")
    reasons.append(load(onnx_path, cache).describe()["engine"]["built_because"])
    monkeypatch.setattr(machine, "power_mode", lambda: "pmode:0002 fmode:quiet")  # the fan's is no reason
    assert load(onnx_path, cache).describe()["engine"]["built_because"] is None
    described = fake_cuda.FakeCuda().describe()
    monkeypatch.setattr(fake_cuda.FakeCuda, "describe", lambda self: {**described, "compute_capability": "11.0"})
    reasons.append(load(onnx_path, cache).describe()["engine"]["built_because"])
    reasons.append(load(onnx_path, cache, batch=2).describe()["engine"]["built_because"])
    assert reasons == [
        "never built here",
        "power_mode was None, is pmode:0002",
        "cuda compute_capability was 8.7, is 11.0",
        "never built here",
    ]
    assert len(list(cache.glob("*.engine"))) == 4


def test_an_engine_that_was_chosen_while_clocks_moved_is_built_anew_once_they_are_locked(
    install: Install, onnx_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chosen at locked clocks serves at any: a release that was measured is not built again when it predicts."""
    install("10.3")
    found = []
    for locked in (None, False, True, True, False, None):
        monkeypatch.setattr(vitals, "clocks", lambda root, locked=locked: {"locked": locked})
        engine = load(onnx_path, cache).describe()["engine"]
        found.append((engine["built_because"], engine["clocks_locked"]))
    assert found == [
        ("never built here", None),
        (None, None),
        ("it was built while clocks were free, and they are locked now", True),
        *[(None, True)] * 3,
    ]
    assert len(list(cache.glob("*.engine"))) == 1


def test_what_predicts_takes_the_engine_as_it_is(
    install: Install, bundle: HandMadeBundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that starts once `jetson_clocks` has locked the clocks would else build for minutes."""
    install("10.3")
    options, found = {"cuda": "fake", "cache_dir": str(cache)}, []
    for locked in (False, True):
        monkeypatch.setattr(vitals, "clocks", lambda root, locked=locked: {"locked": locked})
        runtime, _ = deployment.loaded(Bundle(str(bundle.folder)), "fp32", "tensorrt", 0, options)
        found.append(runtime.describe()["engine"]["built_because"])
    assert found == ["never built here", None]


def test_a_cached_engine_that_no_longer_opens_is_built_anew_once(
    install: Install, onnx_path: Path, cache: Path
) -> None:
    """Its record is right, its bytes are the record's, and yet the library refuses it (or dies of it)."""
    install("10.3")
    load(onnx_path, cache)
    (plan,) = cache.glob("*.engine")
    other = plan.read_bytes().replace(b"10.3.0", b"10.3.9")
    plan.write_bytes(other)
    record = json.loads(plan.with_suffix(".json").read_text())
    record.update(size_bytes=len(other), sha256=hashlib.sha256(other).hexdigest())
    plan.with_suffix(".json").write_text(json.dumps(record))
    engine = load(onnx_path, cache).describe()["engine"]
    assert "did not open" in engine["built_because"]
    assert "expecting 10.3.0, got 10.3.9" in engine["built_because"]
    assert load(onnx_path, cache).describe()["engine"]["built_because"] is None


def test_a_release_whose_engine_is_built_anew_is_checked_anew(
    install: Install, bundle: HandMadeBundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What predicts after a change of the machine is not the engine that `deploy` has checked."""
    install("10.3")
    release, options = tmp_path / "release", {"cuda": "fake", "cache_dir": str(cache)}
    shutil.copytree(bundle.folder, release / "bundle")
    facts: dict[str, Any] = {"id": "one", "precision": "fp32", "runtime": "tensorrt", "threads": 0, "options": options}
    monkeypatch.setattr(machine, "power_mode", lambda: "pmode:0000 fmode:quiet")
    runtime, _ = deployment.loaded(Bundle(str(release / "bundle")), "fp32", "tensorrt", 0, options)
    (release / "release.json").write_text(json.dumps({**facts, "runtime_facts": runtime.describe()}))
    monkeypatch.setattr(deployment, "golden_check", lambda *_: dict.fromkeys(GOLDEN_FACTS, 0.5) | {"ok": False})
    predict.Deployed(release)  # the engine that was checked
    monkeypatch.setattr(machine, "power_mode", lambda: "pmode:0000 fmode:cool")
    predict.Deployed(release)
    install("10.16")  # as another JetPack
    for _ in range(2):  # the second time it lies in the cache, and is wrong still
        with pytest.raises(AgentError, match="computes something else here") as caught:
            predict.Deployed(release)
        assert caught.value.code == "E_GOLDEN"


def test_power_mode_is_read_where_the_board_notes_it(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("pmode:0002 \n")
    assert machine.power_mode(str(tmp_path / "status")) == "pmode:0002"
    assert machine.power_mode(str(tmp_path / "none")) is None


def test_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_cache.default_folder() == tmp_path / "afpkd" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert engine_cache.default_folder() == Path("/home/someone/.cache/afpkd/engines")


def test_an_engine_that_is_used_is_the_last_to_be_dropped(filled: EngineCache) -> None:
    plan = filled.plan_path(IDENTITY)
    both = (plan, plan.with_suffix(".json"))
    for path in both:
        os.utime(path, (1, 1))
    filled.record(IDENTITY)
    assert all(path.stat().st_mtime > 1 for path in both)
