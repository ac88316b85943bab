"""Real CIFAR-100 and a real public teacher, where AFPKD_DATA holds them."""

import json
import subprocess
import sys

import pytest

from afpkd.data.cifar100 import FOLDER
from afpkd.data.dataset import data_root

TEACHER = data_root() / "cifar100_resnet56-f2eff4c8.pt"


@pytest.mark.slow
@pytest.mark.skipif(
    not (TEACHER.is_file() and (data_root() / FOLDER / "test.bin").is_file()),
    reason=f"AFPKD_DATA holds no {TEACHER.name} or no {FOLDER}/",
)
def test_the_public_teacher_has_its_published_accuracy() -> None:
    command = [sys.executable, "-m", "pipeline", "evaluate", str(TEACHER), "--arch", "resnet56", "--data", "cifar100"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["n"] == 10_000
    assert found["top1"] == pytest.approx(72.63, abs=0.05)
