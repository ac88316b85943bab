"""What stages say, as their run reads it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.progress import new_events


def test_whole_lines_are_read_once_and_broken_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first, second = ({"stage": "student", "text": text} for text in ("a", "b\u00e9"))
    path.write_text(json.dumps(first) + "\n" + json.dumps(second)[:9])
    with path.open(encoding="utf-8") as file, path.open("a", encoding="utf-8") as stage:
        assert list(new_events(file)) == [first]
        assert list(new_events(file)) == []
        stage.write(json.dumps(second)[9:] + '\n{"stage": "st{"stage"\n[1]\n{"no": 1}\n' + json.dumps(first) + "\n")
        stage.flush()
        assert list(new_events(file)) == [second, first]
