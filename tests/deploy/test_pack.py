from __future__ import annotations

import ast
import builtins
import functools
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import pack
from deploy.agent import PROTOCOL
from deploy.pack import agent_archive

ROOT = Path(pack.__file__).parent.parent


def test_bytes_depend_on_the_source_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = agent_archive()
    copy = tmp_path / "agent"
    shutil.copytree(ROOT / "deploy" / "agent", copy)
    (copy / "__pycache__" / "x.pyc").parent.mkdir(exist_ok=True)
    (copy / "__pycache__" / "x.pyc").write_bytes(b"x")
    for path in copy.glob("*.py"):
        path.chmod(0o600)
        os.utime(path, (10**9, 10**9))
    monkeypatch.setattr(pack, "_SOURCE", copy)
    assert agent_archive() == first
    (copy / "errors.py").write_text("# changed\n")
    assert agent_archive() != first


def test_archive_holds_the_package_and_nothing_else() -> None:
    entries = zipfile.ZipFile(io.BytesIO(agent_archive())).infolist()
    names = [entry.filename for entry in entries]
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert names == sorted({f"agent/{name}" for name in shipped()} | {"__main__.py"})


def shipped() -> set[str]:
    return {path.name for path in (ROOT / "deploy" / "agent").glob("*.py") if not path.name.startswith("fake_")}


def test_no_fake_can_be_reached_on_a_device() -> None:
    """None is packed, and nothing that is packed speaks of one."""
    archive = zipfile.ZipFile(io.BytesIO(agent_archive()))
    assert len(list((ROOT / "deploy" / "agent").glob("fake_*.py"))) == 4
    assert [name for name in archive.namelist() if "fake" in name] == []
    assert [
        name for name in archive.namelist() if re.search(r"import.*fake|fake_|\"fake\"", archive.read(name).decode())
    ] == []


def test_agent_runs_from_the_archive_alone(tmp_path: Path) -> None:
    assert version_under(sys.executable, tmp_path)["protocol"] == PROTOCOL


def test_agent_is_written_in_python_3_8() -> None:
    for path in sorted((ROOT / "deploy" / "agent").glob("*.py")):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 8))
    with pytest.raises(SyntaxError):  # the check can fail
        ast.parse("match 1:\n case _: pass", feature_version=(3, 8))


def test_no_class_of_python_is_subscripted_where_it_is_evaluated() -> None:
    """`list[int]` is Python 3.9: only annotations, which nothing evaluates, may hold it. vermin is blind to it."""
    assert generics_at_run_time("x: list[int] = list()\ndef f(a: set[int]) -> list[int]: return a[0]") == []
    assert generics_at_run_time("import subprocess as s\nx = list[int]()\nclass A(s.Popen[bytes]): ...") == [2, 3]
    for path in sorted((ROOT / "deploy" / "agent").glob("*.py")):
        assert generics_at_run_time(path.read_text(encoding="utf-8")) == [], path.name


def generics_at_run_time(source: str) -> list[int]:
    """Lines that subscript a class of Python's own library outside of annotations and of `if TYPE_CHECKING`."""
    tree, known = ast.parse(source), dict(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {name.asname or name.name: sys.modules.get(name.name) for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in sys.stdlib_module_names:
            module = importlib.import_module(node.module)
            known |= {name.asname or name.name: getattr(module, name.name, None) for name in node.names}
    found = []
    for node in evaluated(tree):
        if isinstance(node, ast.Subscript):
            first, *rest = ast.unparse(node.value).split(".")
            meant = functools.reduce(lambda thing, name: getattr(thing, name, None), rest, known.get(first))
            if isinstance(meant, type) and hasattr(meant, "__class_getitem__"):
                found.append(node.lineno)
    return sorted(found)


def evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, but for annotations and what only type checkers read."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if field not in ("annotation", "returns") and isinstance(child, ast.AST):
                yield from evaluated(child)


def pythons() -> list[str]:
    """Every CPython 3.8 to 3.13 on this machine that really starts (pyenv's shims may refuse), and this one."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = {sys.executable}
    for minor in range(8, 14):
        candidates = [
            *map(str, sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python"))),
            shutil.which(f"python3.{minor}"),
        ]
        starts = [
            p
            for p in candidates
            if p and subprocess.run([p, "-c", ""], capture_output=True, check=False).returncode == 0
        ]
        found.update(starts[:1])
    return sorted(found)


@pytest.mark.parametrize("python", pythons())
def test_agent_imports_under_every_python_here(python: str, tmp_path: Path) -> None:
    """Every module is compiled and imported there, numpy being a stand-in: the board brings its own."""
    assert version_under(python, tmp_path)["python"].startswith("3.")
    code = (
        "import importlib, sys, types, zipfile; sys.modules['numpy'] = types.ModuleType('numpy');"
        "sys.path.insert(0, 'agent.pyz');"
        "names = [n[:-3].replace('/', '.') for n in zipfile.ZipFile('agent.pyz').namelist() if n.startswith('agent/')];"
        "[importlib.import_module(name) for name in names]; print(len(names))"
    )
    done = subprocess.run(
        [python, "-I", "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(shipped())


def test_a_device_without_numpy_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    # -S leaves site-packages out: numpy is not to be found
    done = subprocess.run(
        [sys.executable, "-I", "-S", "agent.pyz", "profile"],
        cwd=tmp_path,
        input="{}",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "E_NUMPY"
    assert "apt install python3-numpy" in error["message"]


def version_under(python: str, folder: Path) -> dict[str, Any]:
    (folder / "agent.pyz").write_bytes(agent_archive())
    done = subprocess.run(
        [python, "-I", "agent.pyz", "version"], cwd=folder, input="", capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_agent_uses_nothing_newer_than_python_3_8() -> None:
    """Syntax is not all: `str.removeprefix` parses everywhere."""
    pytest.importorskip("vermin", reason="no vermin here: pip install vermin")
    folder = ROOT / "deploy" / "agent"
    command = [
        str(Path(sys.executable).with_name("vermin")),
        "-t=3.8-",
        "--no-tips",
        "--no-eval-annotations",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
