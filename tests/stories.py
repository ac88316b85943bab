"""The pages of docs/ as something to run: their files, their commands by a shell as they stand, what they show."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CLASSES = ("bird", "cat", "dog")
NOT_RUN = ("# needs a ", "# your model", "# hours", "# long", "# downloads")
"""A remark that begins so: a test leaves the command out."""


def blocks(page: str, language: str) -> list[str]:
    """What the page's fenced blocks of a language hold, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The page's commands in order, without those that need what a test does not have."""
    return [line for lines, _ in steps(page) for line in lines]


def steps(page: str) -> list[tuple[list[str], str]]:
    """The page's commands, block by block, each with what the page shows of its output (empty: nothing)."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found: list[tuple[list[str], str]] = []
    for language, block in re.findall(r"^```(sh|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "sh":
            lines = [line for line in block.splitlines() if not any(remark in line for remark in NOT_RUN)]
            found.append((lines, ""))
        else:
            found[-1] = (found[-1][0], block)
    return found


def write_photos(folder: Path, num: int = 40) -> None:
    """`num` photos of a colour a class, of different sizes, in photos/<class>/."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(num):
            height, width = generator.integers(30, 50, 2)
            pixels = generator.integers(0, 160, (height, width, 3), dtype=np.uint8)
            pixels[..., label] += 95
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.jpg")


def shortened(recipe: str) -> str:
    """The documented recipe, for a minute: one epoch, one file, no demands on what is learnt."""
    assert "epochs = 30" in recipe
    short = recipe.replace("epochs = 30", "epochs = 1\nbatch_size = 16").replace("min_top1 = 60.0", "min_top1 = 0.0")
    short = short.replace("image_size = 64 ", "image_size = 32 ").replace("image_size = 224 ", "image_size = 64 ")
    short = re.sub(r"\[prompts\].*\n(?:\w.*\n)*", "", short)
    return short + '\n[prompts]\nepochs = 0.2\nbatch_size = 16\nmust_choose = false\n[export]\nprecisions = ["fp32"]\n'


def run(line: str, home: Path, codes: tuple[int, ...] = (0,)) -> str:
    """Run a documented line in `home` by a shell; what it said. `afpkd` and `make` are this tree's, without a setup.

    AssertionError with all that was said where it ends with none of these exit codes.
    """
    programs = home / ".programs"
    if not programs.exists():
        programs.mkdir()
        afpkd = f"{shlex.quote(sys.executable)} -m pipeline"
        makefile = shlex.quote(str(ROOT / "Makefile"))
        _write_program(programs / "afpkd", f'exec {afpkd} "$@"')
        _write_program(
            programs / "make", f'exec {_real_make()} -f {makefile} -o .venv/.afpkd-setup AFPKD="{afpkd}" "$@"'
        )
    path = f"{programs}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(["bash", "-c", line], cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in codes, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _real_make() -> str:
    return subprocess.run(["which", "make"], capture_output=True, text=True, check=True).stdout.strip()


def _write_program(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def not_said(shown: str, said: str) -> list[str]:
    """Lines of a page's example that the program did not print: their words count, not numbers, bars and verdicts."""
    lines = said.splitlines()
    expected = [line for line in shown.splitlines() if line.strip() not in ("", "…")]
    return [line for line in expected if not any(re.fullmatch(_form(line), found) for found in lines)]


def _form(line: str) -> str:
    """A pattern for the line: any number for a number, any verdict and reasons for those, anything for an ellipsis."""
    form = re.escape(re.sub(r"\s+", " ", re.sub(r"(VALID|WARN|INVALID);.*", "VALID…", line.strip())))
    form = re.sub(r"(\\[+-]|−)?\d[\d,]*(\\\.\d+)?(e\\?-?\d+)?", r"[-+−]?[\\d,]+(\\.\\d+)?(e-?\\d+)?", form)
    form = (
        re.sub(r"INVALID|VALID|WARN", "(VALID|WARN|INVALID)", form).replace("…", ".*").replace("True", "(True|False).*")
    )
    form = re.sub(r"[▁▂▃▄▅▆▇█]+", "[▁▂▃▄▅▆▇█]+", form)
    return r"\s*" + form.replace(r"\ ", r"\s+") + r"\s*"
