"""Releases on the device: laid out, switched to, deployed again, and killed at every step of it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.agent import releases
from deploy.agent.errors import AgentError


class Killed(BaseException):
    """SIGKILL, as far as files can tell."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder that is also where the process stands, as the host's verbs have it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.pyz").write_text("the agent")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "agent.pyz")])
    (tmp_path / "sent").mkdir()
    for name in ("manifest.json", "fp32.onnx", "golden.npz"):
        (tmp_path / "sent" / name).write_text(name)
    return tmp_path


def placed(root: Path, name: str) -> None:
    releases.place(root, root / "sent", {"id": name, "deployed_at": "2026-01-01 00:00:00 UTC"}, ("python3",))


def is_whole(folder: Path) -> bool:
    bundle = {path.name: path.read_text() for path in (folder / "bundle").iterdir()}
    named = bundle == {name: name for name in ("manifest.json", "fp32.onnx", "golden.npz")}
    return named and (folder / "agent.pyz").exists() and "id" in releases._facts(folder)


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> bool:
    """Do it, and die in place of the step-th change to a name; say whether there was such a step."""
    left = [step]

    def dying(call: Any) -> Any:
        def act_or_die(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return call(*arguments, **options)

        return act_or_die

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree"), (shutil, "copytree")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        try:
            act()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("again", ["new", "old"])
def test_a_deployment_that_is_killed_leaves_a_release_and_the_next_one_cleans_up(
    again: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a new release, and of the current one once more."""
    steps = 0
    placed(root, "first")
    placed(root, "old")
    while killed_at(steps, monkeypatch, lambda: placed(root, again)):
        assert is_whole(root / releases.CURRENT), f"step {steps}"
        placed(root, again)
        assert is_whole(root / releases.CURRENT)
        assert releases.status({})["current"] == again
        assert {path.name for path in (root / "releases").iterdir()} == {"first", "old", again}
        assert releases.rollback({})["release"]["id"] == ("first" if again == "old" else "old")
        placed(root, "old")
        shutil.rmtree(root / "releases" / "new", ignore_errors=True)
        steps += 1
    assert steps >= 4


def test_a_release_that_is_not_whole_counts_again_only_once_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its facts come last: where they are, all is."""
    steps, more = 0, True
    while more:
        placed(root, "one")
        for name in (releases.FACTS, "bundle/fp32.onnx", "agent.pyz"):
            (root / "releases" / "one" / name).unlink()
        more = killed_at(steps, monkeypatch, lambda: placed(root, "one"))
        assert releases.status({})["current"] is None or is_whole(root / releases.CURRENT), f"step {steps}"
        steps += 1
    assert steps > 4


def test_a_link_to_a_release_that_is_gone_is_no_release_and_a_new_deployment_repairs_it(root: Path) -> None:
    placed(root, "one")
    shutil.rmtree(root / "releases" / "one")
    assert releases.status({}) == {"releases": [], "current": None}
    with pytest.raises(AgentError, match="nothing is deployed here") as caught:
        releases.rollback({})
    assert caught.value.code == "E_RELEASE"
    placed(root, "one")
    assert is_whole(root / releases.CURRENT)


def test_a_release_whose_removal_was_killed_is_gone_and_the_next_deployment_drops_its_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(folder: Path) -> None:
        (folder / "bundle" / "fp32.onnx").unlink()
        raise Killed

    for name in ("first", "second", "third"):
        placed(root, name)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", half)
        releases.prune(root, keep=1)
    assert {row["id"] for row in releases.status({})["releases"]} == {"second", "third"}
    assert releases.prune(root, keep=1) == []
    placed(root, "fourth")
    assert sorted(path.name for path in (root / "releases").iterdir()) == ["fourth", "second", "third"]
