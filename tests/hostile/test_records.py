"""Records of a stranger's run: the code that they name is not run, weights that they do not know are not scored."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.record import Json, write_record
from pipeline.evaluation import evaluate_path
from pipeline.lineage import WEIGHTS
from pipeline.networks import recorded_network
from pipeline.reproduce import reproduce

OWN = "from torch import nn\ndef make(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))\n"


@pytest.fixture(name="evil")
def _evil(tmp_path: Path, trap: Path) -> Path:
    """A stranger's file, which would leave its mark."""
    path = tmp_path / "theirs" / "net.py"
    path.parent.mkdir()
    path.write_text(f"import pathlib\npathlib.Path({str(trap)!r}).touch()\n{OWN}")
    return path


def record_of(arch: str) -> Json:
    network: Json = {"arch": arch, "stages": [], "own": None}
    facts = {"num_classes": 10, "in_channels": 1, "image_size": [28, 28], "data": "fashion_mnist_5k"}
    return {"arch": "net.py:make", "network": network, "preprocessing": {"mean": [0.0], "std": [1.0]}, **facts}


@pytest.mark.parametrize("arch", [None, "resnet8", "other.py:make"])
def test_a_file_that_a_record_names_is_not_run(evil: Path, tmp_path: Path, arch: str | None) -> None:
    write_record(tmp_path / "student" / "record.json", record_of(f"{evil}:make"))
    with pytest.raises(UserError, match=r"net\.py:make, whose code would be run: if it is yours, name it: --arch net"):
        evaluate_path(tmp_path / "student", arch=arch, data=None, recipe=None)


def test_a_file_that_the_caller_names_is_run_in_its_place(evil: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OWN)
    made = recorded_network(record_of(f"{evil}:make"), f"{tmp_path / 'net.py'}:make")
    assert sum(isinstance(module, nn.Linear) for module in made.modules()) == 1


def test_weights_that_are_not_the_recorded_ones_are_not_scored(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    write_record(folder / "record.json", {**record_of("resnet8"), "outputs": {WEIGHTS: "0" * 64}})
    with pytest.raises(UserError, match=r"model\.safetensors: not there, though .*record\.json is"):
        evaluate_path(folder, arch=None, data=None, recipe=None)
    save_file(build_model("resnet8", num_classes=10, in_channels=1).state_dict(), folder / WEIGHTS)
    with pytest.raises(UserError, match=r"model\.safetensors: its bytes are not those that were recorded"):
        evaluate_path(folder, arch=None, data=None, recipe=None)


def test_a_recipe_that_a_record_names_is_not_read(evil: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "theirs" / "evil.toml"
    recipe.write_text(f'extends = "default"\n[distill]\nstudent = "{evil}:make"\n')
    path = tmp_path / "undistilled" / "record.json"
    facts = {"schema": "afpkd.checkpoint/1", "role": "undistilled", "recipe": str(recipe), "outputs": {}, "inputs": {}}
    write_record(path, {**facts, "device": "cpu", "threads": 1, "config_digest": "d"})
    with pytest.raises(UserError, match=r"which is not a shipped one: name its file, --recipe FILE"):
        reproduce(path, None, tmp_path / "work")
