"""What is deployed: `releases/<id>/` holds a checked bundle, and the link `current` names the one that is used.

The link is switched in one step: whoever predicts sees the old release or the new one. One that is deployed again is
renewed file by file, its facts last: an id names one bundle (it is a hash of the manifest), so that a kill half way
leaves a release that works. Each remembers which it replaced, so that there is a way back.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AgentError
from .service import unit_files
from .supervisor import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Json = dict[str, Any]

RELEASES, CURRENT, FACTS = Path("releases"), Path("current"), "release.json"


def status(document: Json) -> Json:
    """Give every release, the newest first, and which is current."""
    del document
    current = _current(Path())
    rows = [dict(_facts(folder), current=folder.name == current) for folder in _releases(Path())]
    return {"releases": sorted(rows, key=lambda row: str(row["deployed_at"]), reverse=True), "current": current}


def rollback(document: Json) -> Json:
    """Make the release that the current one replaced current again. AgentError E_RELEASE where there is none."""
    del document
    current = _current(Path())
    if current is None:
        raise AgentError("E_RELEASE", "nothing is deployed here")
    previous = _facts(RELEASES / current)["replaced"]
    if previous is None or not (RELEASES / previous / FACTS).exists():
        raise AgentError("E_RELEASE", f"{current} replaced nothing that is still here")
    _switch(Path(), previous)
    return {"release": _facts(RELEASES / previous), "rolled_back": current}


def place(root: Path, bundle: Path, facts: Json, python: Sequence[str]) -> None:
    """Lay a release out beside its final place, move it there, switch to it. `facts` name it: `id`.

    What an earlier deployment that was killed laid out is dropped: one job a device, so that none of them still runs.
    """
    for left in (root / RELEASES).glob(".*"):
        shutil.rmtree(left)
    name = str(facts["id"])
    replaced = _current(root)
    if replaced == name:  # deployed again: it still replaces what it replaced
        replaced = _facts(root / RELEASES / name)["replaced"]
    final = root / RELEASES / name
    staged = root / RELEASES / f".{name}.{os.getpid()}"
    staged.mkdir(mode=0o700, parents=True)
    shutil.copytree(bundle, staged / "bundle", copy_function=_linked)
    shutil.copyfile(sys.argv[0], staged / "agent.pyz")
    for unit, text in unit_files(root.resolve(), python).items():
        (staged / unit).write_text(text, encoding="utf-8")
    write_json(staged / FACTS, dict(facts, replaced=replaced))
    if final.exists():
        _renew(final, staged)
    else:
        staged.rename(final)
    _switch(root, name)


def prune(root: Path, keep: int) -> list[str]:
    """Remove the oldest releases beyond `keep`; never the current one, nor the one a rollback would go to.

    What a kill leaves of one is no release, and the next deployment drops it.
    """
    current = _current(root)
    assert current is not None
    safe = {current, _facts(root / RELEASES / current)["replaced"]}
    others = [folder for folder in _releases(root) if folder.name not in safe]
    others.sort(key=lambda folder: str(_facts(folder)["deployed_at"]), reverse=True)
    doomed = others[max(0, keep - len(safe - {None})) :]
    for folder in doomed:
        gone = folder.with_name(f".{folder.name}.{os.getpid()}")
        folder.rename(gone)
        shutil.rmtree(gone)
    return [folder.name for folder in doomed]


def engine_identities(root: Path) -> Iterator[Json]:
    """Say what the engines were built from that releases were checked with; a release that is not whole has none."""
    for folder in _releases(root):
        try:
            yield _facts(folder)["runtime_facts"]["engine"]["identity"]
        except (OSError, ValueError, LookupError, TypeError):  # damaged, or of a runtime that builds none
            continue


def _renew(final: Path, staged: Path) -> None:
    """Move each file over the one of its name, the facts last: `current` may be this release, and never misses one."""
    (final / "bundle").mkdir(exist_ok=True)
    names = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: name == Path(FACTS)):
        (staged / name).replace(final / name)
    shutil.rmtree(staged)


def _switch(root: Path, name: str) -> None:
    """Let `current` name the release, in one step."""
    link = root / f".current.{os.getpid()}"
    if link.is_symlink():  # of a process of that number that was killed here
        link.unlink()
    link.symlink_to(RELEASES / name)
    link.replace(root / CURRENT)


def _linked(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _current(root: Path) -> str | None:
    """Name the release that is used; None where there is none, or it is no longer whole."""
    try:
        name = Path(os.readlink(root / CURRENT)).name  # noqa: PTH115 (Path.readlink is Python 3.9)
    except OSError:
        return None
    return name if (root / RELEASES / name / FACTS).exists() else None


def _facts(folder: Path) -> Json:
    facts: Json = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return facts


def _releases(root: Path) -> Sequence[Path]:
    return [path.parent for path in (root / RELEASES).glob(f"*/{FACTS}") if not path.parent.name.startswith(".")]
