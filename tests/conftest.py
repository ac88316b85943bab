"""What every test shares: one thread (the runs are small, the machine may be busy), and no silent skips in CI."""

import gc
import os
import shlex
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
gc.set_threshold(10_000)  # as the program does (pipeline/cli.py): a seventh of the CPU's time

COVERING = ("afpkd", "export", "deploy")
"""Folders of tests whose lines count as covered: those of the layers that `make test` measures, the fast ones. What a
layer's own tests do not reach is not reached; and tracing costs the others two fifths of their time."""
LONGEST = ("tests/deploy/ssh/test_run.py", "tests/deploy/ssh/test_aarch64.py", "tests/pipeline/test_slurm.py")
"""Files of slow tests alone that take minutes: the longest first, which would be waited for at the end."""
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")


def _leave_make() -> None:
    """Tests that call make are no part of the `make test` that calls them: its variables (ARGS=...) are not theirs."""
    given = [word.partition("=")[0] for word in shlex.split(os.environ.get("MAKEFLAGS", "")) if "=" in word]
    for name in (*OF_MAKE, *given):
        os.environ.pop(name, None)


_leave_make()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """Preset `quick` takes a moment in all processes that the module starts: its tests look at no timing."""
    inherited = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(HERE / "brief"), *([inherited] if inherited else [])]))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; of the slow ones the longest files first."""
    ranks = {HERE.parent / name: rank for rank, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in ranks), ranks
    items.sort(key=lambda item: (bool(item.get_closest_marker("slow")), ranks.get(item.path, len(ranks))))
    for item in items:
        if item.get_closest_marker("slow") or item.path.relative_to(HERE).parts[0] not in COVERING:
            item.add_marker("no_cover")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under AFPKD_CI=1 a skip is a failure: CI has installed what the test needs."""
    report = yield
    if os.environ.get("AFPKD_CI") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many hostile inputs were tried; here, since with xdist no other conftest is read by who prints."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    num = sum(report.when == "call" and "tests/hostile/" in report.nodeid for report in reports)
    if num:
        terminalreporter.write_line(f"hostile inputs tried: {num}")
