"""docs/tutorial.md as one story: its files, its commands in order, what it shows; a real sshd in the Jetson's place."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afpkd.data.cifar100 import FOLDER
from afpkd.record import read_record
from bench.loopback import Board
from pipeline.recipe_networks import ForeignTeacher
from pipeline.recipe_reader import load_recipe
from pipeline.record_keys import EPOCH, NETWORK, PROFILE, PROMPTS
from pipeline.report.tradeoff import Place
from tests import stories
from tests.record_tables import missing, optional, untold
from tests.tiny import FEW, FP32, tiny_recipe

PAGE = "tutorial.md"
SMALLER = (  # what the page says -> the same, for minutes
    ("make distill export profile$", "make distill export profile RECIPE=small.toml"),
    ('RECIPES="default mine.toml"', 'RECIPES="small.toml mine.toml"'),
    ("afpkd report --max-latency-ms 5 --min-accuracy 75", "afpkd report --recipe small.toml --max-latency-ms 5000"),
    ("--preset standard", "--preset quick"),
    ("runs/default", "runs/small"),
    (r"^python3 ~/", f"{sys.executable} {{home}}/"),
)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, board: Board, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: photos, the tutorial's files made small, a board called orin1."""
    made = tmp_path_factory.mktemp("tutorial")
    monkeypatch.setenv("HOME", str(made))
    monkeypatch.delenv("AFPKD_DEVICES")
    stories.write_photos(made)
    mine, photos, devices = stories.blocks(PAGE, "toml")
    tiny = tiny_recipe(heldout=FEW, teacher_epochs=2, prompts_epochs=2, epochs=2, more=FP32)
    (made / "small.toml").write_text(tiny.replace('arch = "resnet8"\n', ""))
    (made / "mine.toml").write_text(mine.replace('"default"', '"small.toml"') + FP32)
    smaller = re.sub('"torchvision:.+"', '"resnet8"', stories.shortened(photos))  # test_stories.py has them as they are
    (made / "photos.toml").write_text(smaller)
    described = (board.folder / "devices.toml").read_text().replace("[board]", "[orin1]")
    assert set(re.findall(r"^(\[.+\]|\w+)", devices, re.MULTILINE)) <= set(
        re.findall(r"^(\[.+\]|\w+)", described, re.MULTILINE)
    )
    (made / "devices.toml").write_text(described)
    return made


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("brief")
def test_the_tutorial_leads_to_a_deployed_student(folder: Path, board: Board) -> None:
    told = 0
    for lines, shown in stories.steps(PAGE):
        said = "".join(stories.run(_smaller(line, board), folder) for line in lines)
        assert stories.not_said(_expected(shown, said), said) == []
        told += len(shown.splitlines())
    assert told >= 25
    assert (folder / "runs/photos/student/bundle/labels.txt").read_text().split() == list(stories.CLASSES)
    for name in ("small", "photos"):
        assert (folder / f"runs/{name}/profiles/local/student-fp32.json").is_file()
    assert (folder / "runs/photos/profiles/orin1/student-fp32.json").is_file()
    assert (folder / "runs/comparison/report.html").is_file()
    assert not board.work.exists(), "gc --all leaves no trace"
    for name, record in RECORDS.items():
        told_of = _told_keys(name)
        found = set(_words_of(read_record(folder / "runs/small" / record))) | {str(place) for place in Place}
        assert len(told_of) >= 1
        assert sorted(told_of - found) == [], name
    for name, keys in (("student", NETWORK), ("undistilled", NETWORK), ("prompts", PROMPTS)):
        made = read_record(folder / "runs/small" / name / "record.json")
        (epoch, *_) = (folder / "runs/small" / name / "metrics.jsonl").read_text().splitlines()
        assert untold(made, keys) == missing(made, keys) == [], name
        assert untold(json.loads(epoch), EPOCH) == missing(json.loads(epoch), EPOCH) == [], name


def _smaller(line: str, board: Board) -> str:
    for words, instead in SMALLER:
        line = re.sub(words, instead.format(home=board.home), line)
    return line


def _expected(shown: str, said: str) -> str:
    """What the page shows, as far as a small run on a busy machine says it."""
    if "recommended: none" in said:  # every latency is INVALID
        shown = "\n".join(line for line in shown.splitlines() if not re.match("recommended|  Files", line))
    shown = shown.replace("2 threads, preset standard, 3 processes", "…, preset quick, 1 process")
    shown = shown.replace("fp32: top-1", "top-1")
    shown = re.sub(r"(Files of students:).*", r"\1 …", shown)  # one, not three
    return re.sub(r"\bdefault\b", "small", shown)


RECORDS = {  # as docs/records.md calls them -> of the small run
    "<role>/record.json": "student/record.json",
    "prompts/record.json": "prompts/record.json",
    "report.json": "report.json",
    "profiles/<device>/<role>-<precision>.json": "profiles/local/student-fp32.json",
}


def _told_keys(record: str) -> set[str]:
    """The keys that docs/records.md names of a record; `a.{b,c}` and `a.b` stand for their parts."""
    page = (stories.DOCS / "records.md").read_text(encoding="utf-8")
    (told,) = re.findall(rf"^- `{re.escape(record)}`:(.*?)(?=^- |^$)", page, re.MULTILINE | re.DOTALL)
    words = {part for word in re.findall(r"`(.+?)`", told) for part in re.split(r"[.,{}]+", word) if part}
    return words - {"null", "npz"} - optional(PROFILE)


def _words_of(value: Any) -> Iterator[str]:
    """Every key of a record."""
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _words_of(inner)


def test_the_tutorials_long_commands_name_what_there_is() -> None:
    text = (stories.DOCS / PAGE).read_text(encoding="utf-8")
    (name,) = set(re.findall(r"RECIPE=(cifar\S+)", text))
    teacher = load_recipe(name)[1].teacher
    assert isinstance(teacher, ForeignTeacher)
    (url,) = re.findall(r"^curl -L --output-dir ~/\.cache/afpkd -O (\S+)", text, re.MULTILINE)
    assert url.rpartition("/")[2] == teacher.weights
    assert f"evaluate ~/.cache/afpkd/{teacher.weights} --arch {teacher.arch} --data cifar100" in text
    assert f"{FOLDER}/" in (stories.DOCS / "recipes.md").read_text(encoding="utf-8")
