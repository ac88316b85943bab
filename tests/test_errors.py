"""Every error of a user has a code, every code an entry in the catalogue, and every entry is of use."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from afpkd.errors import CATALOGUE, UserError
from deploy.device_errors import DEVICE_CATALOGUE
from deploy.target import DeviceError
from pipeline.explain import ERRORS

ROOT = Path(__file__).parent.parent
CODE = r"E_[A-Z][A-Z_]*"
MAKERS = {"UserError": 0, "look_up": 0, "AgentError": 0, "_RefusedError": 0, "DeviceError": 1, "LineError": 1}
"""What makes an error -> which of its arguments is the code."""
PASSED_ON = Counter(
    {
        "afpkd/names.py": 2,  # the callers say
        "deploy/client.py": 1,  # the agent's, as those of ssh.py and jobs.py
        "deploy/ssh.py": 1,
        "deploy/jobs.py": 1,
        "deploy/ssh_failure.py": 1,  # a table of what ssh says
        "pipeline/processes.py": 1,  # a training process's
        "deploy/agent/cleaning.py": 1,  # that of clocks.py
        "deploy/agent/child.py": 2,  # a child's, and one of two literals
        "deploy/agent/cuda_errors.py": 1,  # a table of CUDA's numbers
        "deploy/agent/tensorrt_api.py": 1,  # `failure`'s caller says
    }
)
"""Where a code comes from a variable: how often in which file. Its values are literals elsewhere, or came by line."""


@functools.cache
def _sources() -> list[tuple[str, ast.Module]]:
    folders = ("afpkd", "export", "deploy", "pipeline", "bench")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def _literals(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(CODE, node.value):
            yield node.value


def _calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
            yield node.func.id, node


def test_every_error_is_made_with_a_code_of_the_catalogue() -> None:
    passed_on, num_literal = Counter[str](), 0
    for file, tree in _sources():
        for maker, call in _calls(tree):
            code = call.args[MAKERS[maker]] if len(call.args) > MAKERS[maker] else None
            if isinstance(code, ast.Constant):
                num_literal += 1
                assert code.value in ERRORS, f"{file}:{call.lineno}: {code.value!r}"
            else:
                passed_on[file] += 1
    assert num_literal > 300
    assert passed_on == PASSED_ON


def test_every_code_in_the_source_is_in_the_catalogue_and_every_entry_is_used() -> None:
    catalogues = ("afpkd/errors.py", "deploy/device_errors.py")
    used = {code for file, tree in _sources() if file not in catalogues for code in _literals(tree)}
    used |= set(re.findall(rf"\[({CODE})\]", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert sorted(used - set(ERRORS)) == []
    assert sorted(set(ERRORS) - used) == []


def test_only_a_user_error_is_told_as_a_mistake() -> None:
    """A subclass of its own would escape the walk above."""
    found = {
        node.name
        for _, tree in _sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & set(MAKERS)
    }
    assert found == {"DeviceError", "LineError"}


def test_each_code_is_in_one_catalogue() -> None:
    assert set(CATALOGUE) & set(DEVICE_CATALOGUE) == set()
    assert [code for code in ERRORS if not re.fullmatch(CODE, code)] == []


@pytest.mark.parametrize("code", ERRORS)
def test_cause_and_mend_are_one_plain_line_each(code: str) -> None:
    for text in ERRORS[code]:
        assert text == text.strip()
        assert text.isprintable()
        assert 15 <= len(text) <= 120
        assert text[-1] not in ".:,;"
        assert not text[0].isupper() or text.split()[0].isupper() or text.split()[0] in NAMES, text


NAMES = ("ONNX", "OpenSSH's", "TensorRT", "TensorRT's", "TRAIN_PROCESSES")


def test_no_two_kinds_have_the_same_cause_or_mend() -> None:
    for texts in zip(*ERRORS.values(), strict=True):
        assert [text for text, times in Counter(texts).items() if times > 1] == []


def test_the_files_verbs_and_options_that_the_catalogue_names_exist() -> None:
    text = "\n".join(f"{entry.cause}\n{entry.mend}" for entry in ERRORS.values())
    assert [name for name in re.findall(r"docs/[a-z-]+\.md", text) if not (ROOT / name).exists()] == []
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    verbs = set(re.findall(r"`(afpkd [a-z]+(?: [a-z]+)?)", text))
    assert len(verbs) >= 6
    assert [verb for verb in verbs if f"### {verb}" not in reference] == []
    for section, key in re.findall(r"\b(prompts|export|data)\.([a-z_0-9]+)\b", text):
        assert f"| `{key}` |" in reference, f"{section}.{key}"
    for key in re.findall(r"`([a-z_]+)`(?= (?:for|in) (?:the device|devices\.toml))", text):
        assert f"`{key}`" in (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8"), key


def test_an_error_says_its_code_at_the_end_of_its_line_however_long_that_is() -> None:
    error = UserError("E_FILE", "x\n\x1b[2J: " + "y" * 5000 + " end")
    assert str(error).startswith("x\\n\\x1b[2J: yyy")
    assert str(error).endswith("yyy end [E_FILE]")
    assert len(str(error)) < 2000
    assert error.message.endswith("yyy end")
    assert error.message.isprintable(), "what quotes it is one line too"
    board = DeviceError("orin1", "E_AUTH", "no")
    assert (board.code, board.message, str(board)) == ("E_AUTH", "device orin1: no", "device orin1: no [E_AUTH]")


def _explained(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", "explain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("import time:"))


@pytest.mark.parametrize("typed", ["E_DATA_MISSING", "data_missing", "[E_DATA_MISSING]"])
def test_explain_says_cause_and_mend_however_the_code_is_typed(typed: str) -> None:
    done = _explained(typed)
    entry = ERRORS["E_DATA_MISSING"]
    assert done.returncode == 0
    assert done.stdout == f"E_DATA_MISSING\n  cause  {entry.cause}\n  mend   {entry.mend}\n"
    assert not re.search(r"\| +(torch|numpy|onnx|snakemake)$", done.stderr, re.MULTILINE)


def test_explain_lists_every_code_with_its_cause() -> None:
    lines = _explained().stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(ERRORS)
    assert [line.split(maxsplit=1)[1] for line in lines] == [entry.cause for entry in ERRORS.values()]
    rows = json.loads(_explained("--json").stdout)
    assert rows == [{"code": code, **entry._asdict()} for code, entry in ERRORS.items()]


def test_a_code_that_is_none_is_told_with_the_nearest() -> None:
    done = _explained("E_DATA_MISING")
    assert (done.returncode, done.stdout) == (2, "")
    assert _said(done) == "error: unknown error 'E_DATA_MISING': did you mean 'E_DATA_MISSING'? [E_UNKNOWN_NAME]\n"
