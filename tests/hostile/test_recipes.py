"""Recipes and inventories that nobody meant: a typed value or one line, never a traceback, a hang or a command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from afpkd.errors import UserError
from afpkd.record import read_record
from afpkd.toml_file import read_toml
from deploy.inventory import read_inventory
from pipeline.recipe import Recipe
from pipeline.recipe_reader import RECIPES, load_recipe
from tests.hostile.mutations import broken_bytes, broken_document, one_line

DEVICES = """
[orin1]
host = "jetson@orin1.local:2222"
python = ["/usr/bin/python3", "-X", "utf8"]
workdir = ".cache/afpkd-device"
runtime = "auto"
clocks = "locked"
max_seconds = 600.0
tags = ["desk"]
"""


def toml(value: Any) -> str:
    """A value as TOML; what TOML has no word for becomes a string."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(str(key))} = {toml(item)}' for key, item in value.items())}}}"
    return str(value) if isinstance(value, int | float) else json.dumps(str(value))


def document(tables: Any) -> str:
    tables = tables if isinstance(tables, dict) else {"x": tables}
    return "\n".join(f"{json.dumps(str(key))} = {toml(value)}" for key, value in tables.items())


def recipe_or_line(path: Path) -> None:
    try:
        assert isinstance(load_recipe(str(path))[1], Recipe)
    except UserError as error:
        one_line(error)


@pytest.mark.parametrize("seed", range(80))
def test_a_recipe_of_junk_is_typed_or_one_line(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "junk.toml"
    path.write_text(document(broken_document(read_toml(RECIPES / "default.toml"), seed)))
    recipe_or_line(path)


@pytest.mark.parametrize("seed", range(40))
def test_a_broken_recipe_is_one_line(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(broken_bytes((RECIPES / "default.toml").read_bytes(), seed))
    recipe_or_line(path)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000,
        "[data]\nheldout = " + "9" * 10_000,
        'extends = "self.toml"',
        'extends = "/proc/self/mem.toml"',
        'extends = "pipe.toml"',
        'extends = "zero.toml"',
        'extends = "folder.toml"',
        "a." * 5_000 + "b = 1",
        "# " + "x" * (2 << 20),
    ],
    ids=["deep", "digits", "circle", "no file", "pipe", "device", "folder", "dots", "large"],
)
def test_a_recipe_that_would_hang_or_fill_memory_is_one_line(tmp_path: Path, text: str) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    path = tmp_path / "self.toml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_recipe(str(path))
    one_line(raised.value)


@pytest.mark.parametrize("seed", range(60))
def test_an_inventory_of_junk_is_typed_or_one_line(tmp_path: Path, seed: int) -> None:
    path, whole = tmp_path / "devices.toml", tmp_path / "whole.toml"
    whole.write_text(DEVICES)
    path.write_text(document(broken_document(read_toml(whole), seed)))
    try:
        entries = read_inventory(path)
    except UserError as error:
        one_line(error)
        return
    for entry in entries.values():
        assert not any(word.startswith("-") for word in (entry.host, entry.workdir, entry.command()[0]))


@pytest.mark.parametrize(
    "host",
    ["-oProxyCommand=touch pwned", "a b", "a;touch pwned", "$(id)", "a\nb", "u@-oX=y", "x:99999", "u:p@x", "@", ""],
)
def test_a_host_that_ssh_would_misread_is_refused(tmp_path: Path, host: str) -> None:
    path = tmp_path / "devices.toml"
    path.write_text(f"[orin1]\nhost = {json.dumps(host)}\n")
    with pytest.raises(UserError) as raised:
        read_inventory(path)
    one_line(raised.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 50_000, "9" * 10_000, "NaN", '"x"', "\x00", "{}{}"])
def test_a_record_of_junk_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        read_record(path)
    one_line(raised.value)
