"""What several tests of reports begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.report.making import whole_run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """The same run twice."""
    made = [whole_run(tmp_path / name, devices={"local": 1.0}).folder for name in ("before", "after")]
    return made[0], made[1]
