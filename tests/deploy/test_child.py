"""The agent's children: from the archive, of its own code, and heard when they end without an answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.agent import child
from deploy.agent.errors import AgentError
from deploy.pack import agent_archive


def test_children_of_the_packed_agent_start_from_the_archive(tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    code = (
        "import sys; sys.path.insert(0, 'agent.pyz'); from agent.child import run_in_child\n"
        "try: run_in_child('check_engine', {'library': 'no_such_library', 'plan': 'x', 'dla_core': None})\n"
        "except Exception as error: print(type(error).__name__, error.code, error)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("AgentError E_NO_RUNTIME No module named 'no_such_library'")


def test_children_run_the_code_of_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another copy of the package on the path, or installed, is not taken instead."""
    other = tmp_path / "deploy" / "agent"
    other.mkdir(parents=True)
    for package in (other, other.parent):
        (package / "__init__.py").touch()
    (other / "child.py").write_text("def answer(request): print('{}')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AgentError, match="no_such_library"):
        child.run_in_child("check_engine", {"library": "no_such_library", "plan": "x", "dla_core": None})


def test_a_child_that_ends_without_an_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_START", "import sys; print('last words', file=sys.stderr); sys.exit(3)")
    with pytest.raises(AgentError) as caught:
        child.run_in_child("check_engine", {})
    assert caught.value.code == "E_CRASH"
    assert "exit code 3" in caught.value.message
    assert caught.value.message.endswith("last words")
