"""A release: one version, a citation, licence notices, and a source archive that is whole and needs no git."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from afpkd import record
from afpkd.data import DATASETS
from pipeline.recipe_reader import RECIPES
from tests.tiny import tiny_recipe

ROOT = Path(__file__).parent.parent
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
NAME = f"afpkd-edge-{VERSION}"
NOT_OURS = shutil.ignore_patterns(
    ".git", ".venv", "runs", "dist", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)


def citation() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return found


def test_every_place_says_the_same_version() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"afpkd {VERSION}\n"
    assert record.provenance()["versions"]["afpkd-edge"] == VERSION
    assert citation()["version"] == VERSION
    first = re.search(r"^## .+", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None
    assert first[0] in (f"## {VERSION} - {citation()['date-released']}", "## Unreleased")


def test_the_citation_has_what_its_format_asks_for() -> None:
    """Of version 1.2.0; the whole file was checked with cffconvert."""
    whole = citation()
    assert whole["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= whole.keys()
    paper = whole["preferred-citation"]
    assert {"type", "title", "authors", "journal", "volume", "issue", "year", "start", "end"} <= paper.keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", whole["date-released"])
    names = [author["family-names"] for author in paper["authors"]]
    assert (names[0], len(names), paper["volume"], paper["start"], paper["end"]) == ("Zhang", 8, 68, 1785, 1797)
    assert paper["title"] in (ROOT / "docs" / "method.md").read_text(encoding="utf-8").replace("\n", " ")


def test_what_recipes_name_has_its_licence_in_the_notice() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert [name for name in DATASETS if not re.search(rf"\b{name}\b", notice)] == []
    for recipe in RECIPES.glob("*.toml"):
        raw = tomllib.loads(recipe.read_text(encoding="utf-8"))
        named = [raw[section][key] for section in raw for key in ("weights", "backbone") if key in _table(raw[section])]
        scenes = [
            split["images"].split("/")[0] for split in _table(raw.get("data")).values() if isinstance(split, dict)
        ]
        words = [word.partition(":")[0] for word in named if word not in ("none", "default")]
        assert [word for word in {*words, *scenes} if word not in notice] == [], recipe.name


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def test_every_file_that_is_shipped_and_not_ours_is_in_the_notice() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    images = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".npz", ".png", ".jpg")]
    own = {"runs", "dist", "build"}
    shipped = [path.relative_to(ROOT).as_posix() for path in images if path.relative_to(ROOT).parts[0] not in own]
    assert len(shipped) >= 2
    assert [path for path in shipped if path not in notice] == []


@pytest.mark.parametrize(
    ("text", "commit"),
    [(f"{'0a' * 20}\n", f"{'0a' * 20}?"), ("$Format:%H$\n", None), ("", None), ("0a", None), (b"\xff\xfe", None)],
)
def test_an_archive_knows_its_commit_and_a_copy_none(text: str | bytes, commit: str | None, tmp_path: Path) -> None:
    path = tmp_path / "commit.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert record._archived_commit(path) == commit
    assert record._archived_commit(tmp_path / "gone.txt") is None


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here: apt-get install git")
def test_rows_that_a_bench_appends_make_no_other_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, rows = tmp_path / "afpkd" / "a.py", tmp_path / "bench" / "results" / "a.jsonl"
    for path in (source, rows):
        path.parent.mkdir(parents=True)
        path.touch()
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message", "a")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(record, "_ROOT", tmp_path)
    commit = str(record._git_commit())
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    rows.write_text("{}\n")
    assert record._git_commit() == commit
    source.write_text("1\n")
    assert record._git_commit() == f"{commit}+"


def test_without_a_commit_there_is_no_archive_and_one_line(tmp_path: Path) -> None:
    command = ["make", "-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "dist"]
    alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 2
    assert "error: an archive is made of a commit, and this folder is no git checkout" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", name="unpacked")
def _unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked where no git is; of a tree that came as an archive, that tree."""
    folder = tmp_path_factory.mktemp("release")
    if not (ROOT / ".git").exists():
        shutil.copytree(ROOT, folder / NAME, ignore=NOT_OURS)
        return folder / NAME
    archives = []
    for turn in ("first", "second"):
        subprocess.run(["make", "-C", str(ROOT), "dist", f"DIST={folder / turn}"], check=True, capture_output=True)
        archives.append(folder / turn / f"{NAME}.tar.gz")
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as archive:
        tracked = subprocess.run(
            ["git", "-C", str(ROOT), "ls-tree", "-rz", "--name-only", "HEAD"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")
        assert sorted(file.name for file in archive if file.isfile()) == sorted(
            f"{NAME}/{name}" for name in tracked if name
        )
    subprocess.run(["tar", "-xzf", archives[0], "-C", folder], check=True)
    return folder / NAME


RUN_FROM_THE_ARCHIVE = (
    *("test_docs", "test_numbers", "test_bench_results", "test_rules", "test_losses", "test_data", "test_bundle"),
    *("test_pack", "test_recipe", "test_recipe_mistakes", "test_recipes_of_the_tables"),
)
"""The rest is collected there, and run in the checkout."""


def _alone(unpacked: Path, *arguments: str) -> str:
    """Python on the unpacked tree, with a `git` that fails and tells."""
    programs = unpacked.parent / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "git").write_text(f"#!/bin/sh\ntouch '{programs}/called'\nexit 99\n")
    (programs / "git").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not (programs / "called").exists()
    return done.stdout


@pytest.mark.slow
def test_the_archive_is_itself_what_is_imported_and_tested(unpacked: Path) -> None:
    where = _alone(
        unpacked, "-c", "import afpkd, bench, deploy, export, pipeline; print(afpkd.__file__, bench.__file__)"
    )
    assert where.split() == [str(unpacked / "afpkd" / "__init__.py"), str(unpacked / "bench" / "__init__.py")]
    chosen = " or ".join(f"{name}.py" for name in RUN_FROM_THE_ARCHIVE)
    shown = _alone(unpacked, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", chosen, "tests")
    found = re.search(r"^(\d+) passed, (\d+) deselected", shown, re.MULTILINE)
    assert found is not None, shown[-500:]
    assert int(found[1]) >= 300
    assert int(found[2]) >= 1000, "every test is collected: none needs a file that the archive lacks to be imported"


@pytest.mark.slow
def test_a_network_trained_from_the_archive_names_its_commit(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_recipe())
    where = ("--recipe", str(tmp_path / "tiny.toml"), "--runs", str(tmp_path), "--train-device", "cpu")
    _alone(unpacked, "-m", "pipeline", "train-undistilled", *where)
    made = json.loads((tmp_path / "tiny" / "undistilled" / "record.json").read_text())
    expected = record.provenance()["git_commit"]  # of this tree, which may have been changed since its commit
    assert made["git_commit"] == (expected and expected.rstrip("+?") + "?")
    assert made["versions"]["afpkd-edge"] == VERSION
