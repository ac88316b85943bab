"""`afpkd deploy`: what is refused before any device is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from afpkd.errors import UserError
from afpkd.record import write_record
from pipeline.cli import app
from tests.pipeline.conftest import bundle_manifest, hand_made_run


@pytest.mark.parametrize(("weights", "code"), [("beef", "E_DEVICE_NAME"), ("01d0", "E_RUN_CHANGED")])
def test_a_bundle_of_weights_that_are_gone_is_not_shipped(weights: str, code: str, tmp_path: Path) -> None:
    made = hand_made_run(tmp_path / "default")
    manifest = {**bundle_manifest("bb" * 32), "lineage": {"weights": weights * 16, "calibration": None}}
    write_record(made.folder / "student" / "bundle" / "manifest.json", manifest)
    done = CliRunner().invoke(app, ["deploy", "--device", "orin1", "--runs", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert done.exception.code == code
    assert ("trained anew and has not been exported since" in str(done.exception)) == (code == "E_RUN_CHANGED")
