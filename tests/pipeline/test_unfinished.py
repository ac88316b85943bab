"""What an unfinished training goes on from."""

from pathlib import Path

import pytest

from pipeline import stages, workspace
from pipeline.lineage import UNFINISHED
from pipeline.live import Live
from pipeline.workspace import Workspace, open_run
from tests.tiny import FEW, tiny_recipe


def test_an_unfinished_student_begins_anew_where_its_methods_file_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes a distiller changes its loss and gives the same command again: half of either would be neither."""
    (tmp_path / "tiny.toml").write_text(tiny_recipe(heldout=FEW, epochs=2, more='method = "kd"\n'))
    run = open_run(str(tmp_path / "tiny.toml"), tmp_path / "runs", device="cpu", threads=1)
    stages.train_teacher(run)

    def killed(live: Live, step: int, total: int, row: object) -> None:
        if row is not None:  # an epoch's, which was saved
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Live, "report", killed)
        stages.train_student(run)
    assert (run.role("student") / UNFINISHED).is_file()

    def step() -> int:
        work = Workspace(run, "student")
        return work.fitting(stages.distillation(work, *work.teacher()), run.recipe.distill).step

    assert step() > 0
    monkeypatch.setattr(workspace, "code_digest", lambda method: f"another {method}")
    assert step() == 0
