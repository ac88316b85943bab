"""The code keeps the rules of CONTRIBUTING.md that a program can see: sizes, names, layers, reasons, pins."""

from __future__ import annotations

import ast
import re
import statistics
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("afpkd", "export", "deploy", "pipeline", "bench", "tests")
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_and_functions_are_as_short_as_contributing_says(folder: str) -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "Functions ≤ 60 lines (their median ≤ 10), files ≤ 300" in told
    sources = {name: text for name, text in SOURCES.items() if name.startswith(f"{folder}/")}
    functions = {f"{name}:{first}": lines for name, text in sources.items() for first, lines in _functions(text)}
    assert {name: lines for name, text in sources.items() if (lines := len(text.splitlines())) > 300} == {}
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}
    assert statistics.median(functions.values()) <= 10


def _functions(source: str) -> list[tuple[int, int]]:
    """First line and number of lines of each, those inside others too."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [(node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1) for node in found]


def test_no_name_is_a_drawer_or_shadows_a_module() -> None:
    assert [name for name in SOURCES if re.search(r"(^|/)(utils?|helpers?|misc|profile|onnx|types)\.py$", name)] == []


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl", "checkpoint.pt", "level*.png"])
def test_what_a_stage_leaves_is_named_in_one_place(name: str) -> None:
    pipeline = {path: text for path, text in SOURCES.items() if path.startswith("pipeline/")}
    assert [path for path, text in pipeline.items() if f'"{name}"' in text] == ["pipeline/lineage.py"]


def test_a_loss_knows_no_judge_and_no_learner() -> None:
    losses = {name: text for name, text in SOURCES.items() if name.startswith("afpkd/distillers/")}
    assert losses
    assert [name for name, text in losses.items() if re.search(r"afpkd\.(acceptance|learners)", text)] == []


def test_pathlib_expands_no_home_for_it_raises_on_the_home_of_nobody() -> None:
    shipped = {name: text for name, text in SOURCES.items() if not name.startswith("tests")}
    assert [name for name, text in shipped.items() if re.search(r"(?<!os\.path)\.expanduser\(", text)] == []


def test_nothing_of_length_is_said_twice() -> None:
    """Bodies of functions, whatever their arguments are called; examples in tests/tours/ are there to be copied."""
    places = defaultdict[str, list[str]](list)
    for name, text in ((name, text) for name, text in SOURCES.items() if not name.startswith("tests/tours/")):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and len(body := _body(node)) > 120:
                places[body].append(f"{name}:{node.name}")
    twins = [sorted(found) for found in places.values() if len(found) > 1]
    # the agent imports nothing of ours, and export lies below deploy: neither can have the other's
    assert twins == [["deploy/agent/golden.py:_cosines", "export/verify.py:_cosines"]]


def _body(node: ast.FunctionDef) -> str:
    told = ast.get_docstring(node) is not None
    text = "\n".join(ast.unparse(line) for line in node.body[told:])
    for place, one in enumerate(node.args.args):
        text = re.sub(rf"\b{one.arg}\b", f"_{place}", text)
    return text


def test_what_ruff_is_told_to_leave_has_its_reason_beside_it() -> None:
    """Of NVIDIA's classes, which are NVIDIA's to explain, once per file."""
    bare = {
        f"{name}:{number}"
        for name, text in SOURCES.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(r"# noqa(: [A-Z0-9, ]+)?$", line) and not ("D10" in line and "here and below)" in text)
    }
    assert bare == set()


def test_what_mypy_is_told_to_leave_has_its_reason_beside_it() -> None:
    """In what ships; a test may hand anything to anything."""
    bare = {
        f"{name}:{number}"
        for name, text in SOURCES.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if not name.startswith("tests") and re.search(r"# type: ignore(\[[a-z, -]+\])?$", line)
    }
    assert bare == set()


def test_the_agents_contract_names_all_the_rest_of_deploy() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [one for one in whole["tool"]["importlinter"]["contracts"] if one["type"] == "forbidden"]
    rest = {f"deploy.{path.stem}" for path in (ROOT / "deploy").glob("*.py") if path.stem != "__init__"}
    assert set(contract["forbidden_modules"]) == rest | {"afpkd", "export", "pipeline"}


@pytest.mark.parametrize(("lock", "least"), [("requirements.lock", 100), ("requirements-cluster.lock", 15)])
def test_every_package_is_pinned_and_hashed(lock: str, least: int) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", "")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(pins) > least
    pin = r"[A-Za-z0-9._-]+(\[[^]]+\])?==[A-Za-z0-9.!+_-]+( ; [^;]+)?( +--hash=sha256:[0-9a-f]{64})+ *"
    assert [line[:80] for line in pins if not re.fullmatch(pin, line)] == []
    assert "://" not in text, "no registry is prescribed"


def test_the_snakefile_is_short() -> None:
    assert len((ROOT / "pipeline" / "Snakefile").read_text(encoding="utf-8").splitlines()) <= 150
