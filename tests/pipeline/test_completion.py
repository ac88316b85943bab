"""`afpkd --help` and Tab: quick, and right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import app
from pipeline.recipe_reader import recipe_names

ROOT = Path(__file__).parent.parent.parent
HEAVY = (
    "torch",
    "numpy",
    "pydantic",
    "snakemake",
    "rich",
    "onnx",
    "onnxruntime",
    "scipy",
    "matplotlib",
    "plotly",
    "jinja2",
)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [(["--help"], []), (["run", "--help"], ["pydantic"]), (["devices", "--help"], ["pydantic"])],
)
def test_help_loads_nothing_heavy(arguments: list[str], allowed: list[str]) -> None:
    """No time is asserted: what is loaded decides it. Typer itself reads a verb's arguments with pydantic."""
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert sorted(loaded & set(HEAVY)) == allowed


def test_help_has_the_documented_exit_codes() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "--help"], capture_output=True, text=True, check=True)
    help_text = re.sub(r"\s+", " ", done.stdout)
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for code in ("0", "2", "130", "1"):
        assert re.search(rf"[:;] {code} [a-z]", help_text), code
        assert re.search(rf"^\| {code} \|", page, re.MULTILINE), code


@pytest.fixture(name="bash")
def _bash(tmp_path: Path) -> Path:
    """A folder with the program `afpkd` in it, as installed."""
    program = tmp_path / "bin" / "afpkd"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom pipeline.cli import main\nmain()\n")
    program.chmod(0o755)
    return program.parent


def completed(folder: Path, *words: str) -> list[str]:
    """What a Tab after the last word offers in bash: its own protocol, with the script that the program gives."""
    script = f"""
source <(_AFPKD_COMPLETE=source_bash afpkd)
complete -p afpkd > /dev/null || exit 9
COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
_afpkd_completion afpkd
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment.pop("AFPKD_DEVICES", None)
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, cwd=folder, env=environment
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_verbs_are_completed(bash: Path) -> None:
    verbs = completed(bash, "afpkd", "")
    assert {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    } <= set(verbs)
    assert {"devices", "bundle"} <= set(verbs)
    assert completed(bash, "afpkd", "wa") == ["watch"]


def test_recipes_are_completed(bash: Path) -> None:
    assert completed(bash, "afpkd", "run", "distill", "--recipe", "") == recipe_names()
    assert completed(bash, "afpkd", "report", "--recipe", "bccd") == ["bccd-fcos-cpu"]
    assert completed(bash, "afpkd", "run", "distill", "--recipe", "./mi") == []  # then bash completes files


def test_devices_are_completed_with_those_of_the_inventory(bash: Path) -> None:
    assert completed(bash, "afpkd", "measure", "x.onnx", "--device", "") == ["local", "local-gpu"]
    (bash / "devices.toml").write_text('[orin1]\nhost = "orin1.local"\n[nano]\nhost = "nano.local"\n')
    assert completed(bash, "afpkd", "deploy", "--device", "or") == ["orin1"]
    assert completed(bash, "afpkd", "devices", "probe", "na") == ["nano"]
    (bash / "devices.toml").write_text("[orin1]\nhots = 1\n")
    assert completed(bash, "afpkd", "devices", "probe", "o") == []  # nothing is said at a Tab


def test_values_that_are_listed_are_completed(bash: Path) -> None:
    assert completed(bash, "afpkd", "run", "ex") == ["export"]
    assert completed(bash, "afpkd", "run", "distill", "--train-device", "c") == ["cpu", "cuda"]
