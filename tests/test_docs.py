"""The documents say what the program is: every target, verb, recipe, method, model, data set and file is in them.

Their commands are run by tests/pipeline/test_stories.py, test_tutorial.py and tests/deploy/ssh/test_run.py.
"""

import dataclasses
import inspect
import re
import subprocess
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from markdown_it import MarkdownIt

from afpkd.data import DATASETS
from afpkd.distillers.options import OPTIONS
from afpkd.models import MODELS
from deploy import inventory
from deploy.presets import find_preset
from pipeline import cli_devices, reference
from pipeline.cli import app, bundle_app
from pipeline.recipe_reader import recipe_names
from tests.stories import commands

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS, RECIPES, MEASURING, TREE = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("commands", "recipes", "measuring", "tree")
)
FOLDERS = ("afpkd", "export", "deploy", "pipeline", "bench")


def _targets() -> list[str]:
    return re.findall(r"^([a-z-]+):.*## ", MAKEFILE, flags=re.MULTILINE)


def test_every_make_target_is_documented_and_no_document_names_another() -> None:
    targets = _targets()
    assert len(targets) >= 12
    assert [target for target in targets if f"`make {target}" not in _section(COMMANDS, "Targets of make")] == []
    for document in (ROOT / "README.md", *PAGES):
        found = re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for words in found for word in words.split()} <= set(targets), document.name


def _fenced_lines(page: Path, languages: str = r"\w*") -> list[str]:
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fenced if re.fullmatch(languages, language)]
    return [re.sub(r"^- (run: )?", "", line.strip()) for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_documented_command_has_verbs_options_and_variables_that_there_are(page: Path) -> None:
    variables = set(re.findall(r"^([A-Z_]+) +\?=", MAKEFILE, flags=re.MULTILINE))
    for line in _fenced_lines(page):
        words = line.partition(" #")[0].split()
        if words[:1] == ["make"]:
            assert {found[1] for word in words if (found := re.match(r"([A-Z_]+)=", word))} <= variables, line
        if words[:1] == ["afpkd"]:
            command, rest = typer.main.get_command(app), words[1:]
            while hasattr(command, "commands"):
                assert rest[0] in command.commands, line
                command, rest = command.commands[rest[0]], rest[1:]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_commands_stand_in_blocks_of_a_shell(page: Path) -> None:
    assert [line for line in _fenced_lines(page, "|text") if re.match(r"(afpkd|make|\.venv\S+) ", line)] == []


def test_commands_without_a_remark_are_run_by_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    told = set(re.findall(r'(?:PAGE = |(?:commands|follow|_run)\()"([a-z-]+\.md)"', tests))
    assert {page.name for page in PAGES if commands(page.name)} == told


def _section(page: str, heading: str) -> str:
    """What stands under a heading of second rank."""
    return page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]


def test_every_variable_of_make_is_documented_with_its_default() -> None:
    variables = re.findall(r"^([A-Z_]+) +\?= ?(.*)$", MAKEFILE, flags=re.MULTILINE)
    table = _section(COMMANDS, "Targets of make")
    for name, default in variables:
        if name not in ("JOBS", "PYTHON"):  # a machine's number of cores; said by `make setup` where it is needed
            assert f"| `{name}` | {f'`{default}` ' if default else ''}|" in table, name
    assert len(variables) >= 12


def test_make_passes_its_variables_on() -> None:
    def called(*words: str) -> str:
        command = ["make", "-n", "-o", ".venv/.afpkd-setup", "distill", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return " ".join(done.stdout.split())

    assert "afpkd run distill --recipe 'default' --device 'local'" in called()
    assert "--tensorboard" not in called()
    assert "--tensorboard --quiet" in called("TENSORBOARD=1", "ARGS=--quiet")


def test_every_verb_is_documented() -> None:
    verbs = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    verbs += [f"bundle {command.name}" for command in bundle_app.registered_commands]
    assert len(verbs) >= 11
    table = _section(COMMANDS, "Verbs")
    assert [verb for verb in verbs if not re.search(rf"[` ]{verb}[`. …]", table)] == []


@pytest.mark.parametrize("names", [recipe_names(), list(OPTIONS), list(MODELS), list(DATASETS)])
def test_every_name_a_user_can_write_is_documented(names: list[str]) -> None:
    assert [name for name in names if f"`{name}`" not in RECIPES] == []


def test_the_readme_names_recipes_that_there_are() -> None:
    named = re.findall(r"^\| `(.+?)` \|", _section(README, "Recipes"), re.MULTILINE)
    assert "default" in named
    assert set(named) <= set(recipe_names())


def test_presets_are_documented_with_their_numbers() -> None:
    for name, processes in (("quick", "one"), ("standard", "three"), ("mlperf", "three")):
        preset = find_preset(name)
        row = rf"\| `{name}` \| {preset.min_seconds:g} s and {preset.min_count:,} samples \| {processes}\b"
        assert re.search(row, MEASURING), name
        assert preset.repeats == {"one": 1, "three": 3}[processes]


def test_the_tree_is_complete_and_has_no_ghosts() -> None:
    listed = _listed(TREE.split("```")[1])
    whole = {name for name in listed if name.endswith("/") and sum(one.startswith(name) for one in listed) == 1}
    real = {
        str(path.relative_to(ROOT))
        for folder in (*FOLDERS, "docs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not re.search(r"(^|/)[._]|\.pyc$|\.lock$", str(path.relative_to(ROOT)))
    }
    assert len(real) > 250
    assert sorted(name for name in real - set(listed) if not any(map(name.startswith, whole))) == []
    assert sorted(name for name in listed if not (ROOT / name).exists()) == []
    assert len(listed) == len(set(listed)), "a file stands there twice"


def test_the_readme_lists_every_folder() -> None:
    listed = _listed(_section(README, "The tree").split("```")[1])
    assert sorted(listed) == sorted(f"{name}/" for name in (*FOLDERS, "tests", "docs"))


def _listed(tree: str) -> list[str]:
    found, folders = [], dict[int, str]()
    for line in filter(str.strip, tree.splitlines()):
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        whole = "".join(folders[level] for level in range(depth)) + name
        if name.endswith("/"):
            folders[depth] = name
        found.append(whole)
    return found


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *PAGES):
        text = document.read_text(encoding="utf-8")
        for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
            target = document.parent / path if path else document
            assert target.exists(), f"{document.name}: {path}"
            assert not heading or heading in _anchors(target), f"{document.name}: {path}#{heading}"


def _anchors(page: Path) -> set[str]:
    """How forges name the headings: lower case, words joined by hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_key_of_a_device_is_in_its_guide_with_its_default() -> None:
    guide = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    table = {key: cells for line in re.findall(r"^\| (`.+)", guide, re.MULTILINE) for key, cells in _keys(line)}
    defaults = {field.name: field.default for field in dataclasses.fields(inventory.Entry)}
    assert set(table) == set(defaults)
    for key, cells in table.items():
        if defaults[key] not in (dataclasses.MISSING, None, ()):
            assert f"`{_toml(defaults[key])}`" in cells, key


def _keys(line: str) -> list[tuple[str, str]]:
    keys, _, cells = line.partition(" |")
    return [(key.strip("`"), cells) for key in keys.split(", ")]


def _toml(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def test_every_verb_for_devices_is_documented() -> None:
    row = next(line for line in COMMANDS.splitlines() if line.startswith("| `afpkd devices list`"))
    verbs = [
        command.name or command.callback.__name__ for command in cli_devices.app.registered_commands if command.callback
    ]
    assert len(verbs) >= 6
    assert [verb for verb in verbs if f"{verb}`" not in row] == []


def test_contributing_fits_on_a_screen() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 45


def test_the_changelog_speaks_of_this_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_reference_is_made_from_the_code() -> None:
    assert reference.FILE.read_text(encoding="utf-8") == reference.text(), "run: python -m pipeline.reference"


def test_tables_of_the_reference_are_told_apart_by_their_titles() -> None:
    titles = [inspect.getdoc(kind) for kinds in reference.SECTIONS.values() for kind in kinds]
    assert len(set(titles)) == len(titles) >= 16


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_pages_are_read_by_a_renderer_as_they_were_meant(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    parts = [*tokens, *(part for token in tokens for part in token.children or ())]
    assert [part.content for part in parts if part.type.startswith("html")] == [], "would not be shown"
    assert [part.content for part in parts if part.type == "text" and re.search(r"\*\*|`", part.content)] == []
    kinds = Counter(part.type for part in parts)
    assert kinds["table_open"] == len(re.findall(r"^\|(?:-+:?\|)+$", text, re.MULTILINE))
    assert 2 * kinds["fence"] == len(re.findall(r"^ *```", text, re.MULTILINE))


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_no_page_shows_an_unfilled_place(page: Path) -> None:
    assert not re.search(r"\{[A-Z]+\}", page.read_text(encoding="utf-8"))


def test_the_readme_is_read_in_minutes() -> None:
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("name", ["chain.svg", "trade-off.svg"])
def test_pictures_in_the_readme_need_nothing_from_outside(name: str) -> None:
    assert f"](docs/{name})" in README
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 (our own)
    assert not re.search(r"""(href|src)=["']https?:|<script|@import""", text)
