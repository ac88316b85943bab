"""One measurement a device at a time, whoever starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import deploy
from afpkd.errors import UserError
from deploy.lock import only_measurement


def test_a_second_measurement_waits_and_then_names_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import sys; from deploy.lock import only_measurement\n"
        "with only_measurement('orin1'): print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(deploy.__file__).parent.parent,
        env={"TMPDIR": str(tmp_path), "PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        refused = pytest.raises(UserError, match=rf"orin1 is being measured by process {first.pid} on .* since 20")
        with refused, only_measurement("orin1", wait_s=0.01):
            raise AssertionError("two at once")
        assert f"process {first.pid}" in caplog.text
        with only_measurement("local", wait_s=0):  # another device is free
            pass
        first.kill()
    with only_measurement("orin1", wait_s=0):  # and so is this one, though its holder died of SIGKILL
        pass
