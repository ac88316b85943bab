"""Records held to the tables of `pipeline.record_keys`, from which docs/reference.md is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from afpkd.record import Json

_NOT_IN_ALL = ("Where ", "Of a detector")


def untold(record: Json, told: Mapping[str, str]) -> list[str]:
    """Keys of a record that its table does not name; a table is looked into where the table names its keys."""
    return [key for key in _keys(record, {name.rpartition(".")[0] for name in told}) if key not in told]


def missing(record: Json, told: Mapping[str, str]) -> list[str]:
    """Keys of the table that the record does not have, though every one should."""
    found = set(_keys(record, {name.rpartition(".")[0] for name in told}))
    return [key for key in told if key not in found | optional(told)]


def optional(told: Mapping[str, str]) -> set[str]:
    """Keys of the table that only some records have."""
    return {key for key, meaning in told.items() if meaning.startswith(_NOT_IN_ALL)}


def _keys(record: Json, tables: set[str]) -> Iterator[str]:
    for key, value in record.items():
        if key in tables:
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield key
