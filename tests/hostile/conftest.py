"""Every case here is bounded in time and memory, and leaves no trace: nothing that a stranger's file says is run."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

MORE_MEMORY = 1 << 30
"""Bytes that a case may map beyond what the process has: a file that asks for all of it fails, and the test with it."""

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MORE_MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A file that a case's input tries to make; it must never exist."""
    path = tmp_path / "pwned"
    yield path
    assert not path.exists(), "a stranger's file was run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(60))
