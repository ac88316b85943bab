"""bench/results/: what bench/README.md says of its files, and of the commits that their rows name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = sorted(path for kind in ("json", "jsonl") for path in (ROOT / "bench" / "results").glob(f"*.{kind}"))
TOLD = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")


def test_each_file_says_how_it_is_made() -> None:
    assert [path.name for path in RESULTS if f"`{path.name}`" not in TOLD] == []


def test_commits_that_rows_name_are_in_the_history_but_for_those_that_bench_tells() -> None:
    """Of a history that is whole, and the one that the rows speak of."""
    named = re.findall(r'commit": "([0-9a-f]{40})', "".join(path.read_text(encoding="utf-8") for path in RESULTS))
    (told,) = re.findall(r"The (\d+) rows of (.+?) name states", " ".join(TOLD.split()))
    prefixes = set(re.findall(r"`([0-9a-f]{8})`", told[1]))
    assert sum(commit[:8] in prefixes for commit in named) == int(told[0])
    history = _history()
    if history & set(named):
        assert {commit[:8] for commit in set(named) - history} == prefixes


def _history() -> set[str]:
    """Commits before this state; none where nobody can tell."""
    if not (ROOT / ".git").exists():
        return set()
    shallow, commits = (
        subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout.split()
        for words in (("rev-parse", "--is-shallow-repository"), ("rev-list", "HEAD"))
    )
    return set() if shallow == ["true"] else set(commits)
