"""Measurements that failed: noted beside the profiles they are not, so that the report can name them."""

from __future__ import annotations

from pathlib import Path

from afpkd.errors import UserError
from afpkd.record import Json, read_record, write_record


def note_failure(profile: Path, error: UserError) -> None:
    """Note why the record `profile` (profiles/<device>/<role>-<precision>.json) is not there."""
    write_record(
        _note(profile), {"device": profile.parent.name, "file": profile.stem, "error": str(error), "code": error.code}
    )


def clear_failure(profile: Path) -> None:
    """Forget what was noted of a record."""
    _note(profile).unlink(missing_ok=True)


def clear_failures(run: Path) -> bool:
    """Forget what was noted in a run's folder; say whether there was anything."""
    notes = _notes(run)
    for note in notes:
        note.unlink()
    return bool(notes)


def failures(run: Path) -> list[Json]:
    """What was noted in a run's folder: `device`, `file`, `error` and its `code` of each."""
    return [read_record(note) for note in _notes(run)]


def _note(profile: Path) -> Path:
    return profile.with_name(f".failed-{profile.name}")  # hidden: a profile is any other .json there


def _notes(run: Path) -> list[Path]:
    return sorted(run.glob("profiles/*/.failed-*.json"))
