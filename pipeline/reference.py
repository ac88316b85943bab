"""docs/reference.md from the code: every key of a recipe and of SPEC.toml with type, default and meaning; every verb
with its options; every key of a record; every kind of error.

`python -m pipeline.reference` writes it; a test holds the file to what this gives.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from afpkd.distillers.options import OPTIONS
from pipeline import foreign_spec
from pipeline.explain import ERRORS
from pipeline.recipe import Data, Distill, Recipe
from pipeline.recipe_detection import CocoData, DistillDetector, ExpectedAp, ForeignDetector, Split, TrainedDetector
from pipeline.recipe_folder import FolderData
from pipeline.recipe_networks import ForeignTeacher, TrainedTeacher
from pipeline.recipe_outputs import Expected, Export, Profile
from pipeline.recipe_prompts import Prompts
from pipeline.record_keys import RECORDS

FILE = Path(__file__).parents[1] / "docs" / "reference.md"

SECTIONS: dict[str, tuple[type, ...]] = {
    "Top level": (Recipe,),
    "[data]": (Data, FolderData, CocoData, Split),
    "[teacher]": (TrainedTeacher, ForeignTeacher, TrainedDetector, ForeignDetector),
    "[prompts]": (Prompts,),
    "[distill]": (Distill, DistillDetector),
    "[export]": (Export,),
    "[profile]": (Profile,),
    "[expected.NAME]": (Expected, ExpectedAp),
}
SPEC: dict[str, type] = {
    "Its top level": foreign_spec.Spec,
    "[input]": foreign_spec.Input,
    "[weights]": foreign_spec.Weights,
    "[data] of SPEC.toml": foreign_spec.Data,
}


def text() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Made from the code by `python -m pipeline.reference`; do not edit it.",
        "## Recipe keys",
        'A recipe is a TOML file; `extends = "NAME or PATH"` inherits key by key, tables merge, arrays are replaced. '
        "Accuracies are in percent, latencies in milliseconds, learning rates for the batch size beside them.",
        *(block for title, kinds in SECTIONS.items() for block in _section(title, kinds)),
        "### Options of the methods, in [distill]",
        *(block for kind in OPTIONS.values() for block in _keys_of(kind)),
        "## SPEC.toml",
        "What must be known of [a model trained elsewhere](foreign-model.md); its [export] is that of a recipe.",
        *(block for title, kind in SPEC.items() for block in _section(title, (kind,))),
        "## Verbs",
        "Each verb takes `--help`. [Exit codes](commands.md#exit-codes).",
        *_verbs(),
        "## Records",
        "What a run leaves, key by key ([which files there are](records.md)); a dotted key lies in the table before "
        "the dot. A bundle's manifest has a schema of its own, `export/manifest.schema.json`.",
        *(block for title, keys in RECORDS.items() for block in _record(title, keys)),
        "## Errors",
        "An error is one line that ends in its code; `afpkd explain CODE` says the same as this table.",
        "\n".join(["| code | cause | mend |", "|---|---|---|", *map(_error, ERRORS)]),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, kinds: tuple[type, ...]) -> Iterator[str]:
    yield f"### {title}"
    for kind in kinds:
        yield from _keys_of(kind)


def _keys_of(kind: type) -> Iterator[str]:
    """The class's sentence, then a row a key."""
    yield _joined(inspect.getdoc(kind) or "")
    told = _told_keys(kind)
    rows = [
        f"| `{one.name}` | {_type_of(one)} | {_default_of(one)} | {told.get(one.name, '')} |"
        for one in dataclasses.fields(kind)
    ]
    if rows:
        yield "\n".join(["| key | type | default | what |", "|---|---|---|---|", *rows])


def _told_keys(kind: type) -> dict[str, str]:
    """What stands below each field in the source, of the class and what it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for before, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
                told = after.value if isinstance(after, ast.Expr) else None
                if isinstance(told, ast.Constant) and isinstance(told.value, str):
                    found[before.target.id] = _joined(told.value)
    return found


def _type_of(one: dataclasses.Field[Any]) -> str:
    """The annotation as TOML's words."""
    words = str(one.type)
    for long, short in (
        ("Annotated[str, known('data set', DATASETS)]", "str"),
        ('Annotated[str, known("data set", DATASETS)]', "str"),
        ("Arch", "str"),
        ("Channels", "tuple[float, ...]"),
    ):
        words = words.replace(long, short)
    return f"`{words}`".replace("|", "\\|")


def _default_of(one: dataclasses.Field[Any]) -> str:
    if one.default is not dataclasses.MISSING:
        return f"`{_value(one.default)}`"
    if one.default_factory is not dataclasses.MISSING:
        return "its defaults"
    return "**needed**"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return f"[{', '.join(_value(one) for one in value)}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def _verbs() -> Iterator[str]:
    from pipeline.cli import app

    yield from _verbs_of(typer.main.get_command(app), "afpkd")


def _verbs_of(group: Any, name: str) -> Iterator[str]:
    for verb, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _verbs_of(command, f"{name} {verb}")
            continue
        yield f"### {name} {verb}"
        yield _joined(command.help or "")
        shown = [one for one in command.params if not getattr(one, "hidden", False)]
        rows = [f"| {_parameter(one)} | {_joined(getattr(one, 'help', None) or '')} |" for one in shown]
        if rows:
            yield "\n".join(["| argument | what |", "|---|---|", *rows])


def _parameter(one: Any) -> str:
    if one.param_type_name == "argument":
        return f"`{one.name.upper()}`"
    kind = one.bare_type
    choices = f" {'/'.join(kind)}" if isinstance(kind, type) and issubclass(kind, enum.StrEnum) else ""
    default = "" if one.default in (None, False, (), []) or callable(one.default) else f" ({_words(one.default)})"
    return f"`{one.opts[-1]}`{choices}{default}"


def _words(default: Any) -> str:
    """As a user writes it: several values after one another, an enum by its value."""
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def _record(title: str, keys: dict[str, str]) -> Iterator[str]:
    yield f"### {title}"
    yield "\n".join(["| key | what |", "|---|---|", *(f"| `{key}` | {_joined(told)} |" for key, told in keys.items())])


def _error(code: str) -> str:
    cause, mend = map(_joined, ERRORS[code])
    return f"| `{code}` | {cause} | {mend} |"


def _joined(told: str) -> str:
    return " ".join(told.split()).replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
