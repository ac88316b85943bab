"""Images or code that changed after a training: nothing of it is exported or scored with them; its bundle is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import export.build
from afpkd.checkpoint import save_weights
from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.models.user_file import model_from_file
from afpkd.record import read_record, write_record
from pipeline.cli import app
from pipeline.cli_options import require_unchanged
from pipeline.evaluation import evaluate_path
from pipeline.stages import export_bundle, train_teacher, tune_prompts
from pipeline.workspace import Run, open_run
from tests.pipeline.recipe_files import written

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPE = """
extends = "default"
[data]
name = "folder"
path = "photos"
image_size = [16, 16]
[teacher]
arch = "resnet8"
weights = "mine.safetensors"
min_top1 = 0.0
[prompts]
batch_size = 2
[distill]
batch_size = 2
[export]
precisions = ["fp32"]
"""


@pytest.fixture(name="run")
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A teacher that was taken in and measured on eight photos; exporting it only says with which data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(export.build, "build_bundle", _lineage_alone)
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for value in range(4):
            Image.new("RGB", (16, 16), (value, ord(name[0]), 9 - value)).save(
                tmp_path / "photos" / name / f"{value}.png"
            )
    model = build_model("resnet8", num_classes=2, in_channels=3, image_size=(16, 16))
    save_weights(tmp_path / "mine.safetensors", model.state_dict())
    run = open_run(written(tmp_path, RECIPE), tmp_path / "runs", device="cpu")
    train_teacher(run)
    return run


def _lineage_alone(_model: Any, order: Any, **_: Any) -> Any:
    return {"verification": {}, "lineage": order.lineage}


def _renamed(photos: Path) -> None:
    (photos / "ant").rename(photos / "cow")


def _added(photos: Path) -> None:
    Image.new("RGB", (16, 16), (200, 0, 0)).save(photos / "ant" / "new.png")


@pytest.mark.parametrize("change", [_renamed, _added])
def test_changed_photos_are_neither_exported_nor_scored(run: Run, change: Callable[[Path], None]) -> None:
    change(run.recipe_file.parent / "photos")
    told = r"teacher/record\.json: trained on data \w{12}, what is read now is \w{12}: .* train again"
    with pytest.raises(UserError, match=told):
        export_bundle(run, "teacher")
    with pytest.raises(UserError, match=told):
        evaluate_path(run.role("teacher"), arch=None, data=None, recipe=None)


def test_the_same_photos_are_and_so_are_those_of_a_record_that_names_none(run: Run) -> None:
    record = run.role("teacher") / "record.json"
    assert export_bundle(run, "teacher")["lineage"]["data"] == read_record(record)["inputs"]["data"]
    (run.recipe_file.parent / "photos" / "ant" / "0.png").touch()
    assert evaluate_path(run.role("teacher"), arch=None, data=None, recipe=None)["n"] == 2
    _added(run.recipe_file.parent / "photos")
    write_record(record, {**read_record(record), "inputs": {}})
    assert evaluate_path(run.role("teacher"), arch=None, data=None, recipe=None)["n"] == 2
    assert export_bundle(run, "teacher")["verification"] == {}


@pytest.mark.parametrize("verb", [["tune-prompts"], ["export", "--role", "teacher"]])
def test_a_stage_by_itself_takes_nothing_that_the_recipe_would_make_otherwise_now(
    verb: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a whole run the graph makes it anew."""
    command = ["afpkd", *verb, "--recipe", str(run.recipe_file), "--runs", str(run.folder.parent)]
    monkeypatch.setattr(sys, "argv", command)
    edited = run.recipe_file.read_text().replace("image_size = [16, 16]", "image_size = [16, 16]\nflip = false")
    run.recipe_file.write_text(edited)
    with pytest.raises(UserError, match=r"teacher/record\.json: made by other settings than \w+\.toml has now: run"):
        app(standalone_mode=False)
    again = open_run(str(run.recipe_file), run.folder.parent, device="cpu")
    train_teacher(again)
    assert require_unchanged(again, "prompts", None, ["teacher"]) == again


NET = """
from torch import nn
def make(num_classes):
    maps = [nn.Conv2d(3, 8, 3, 2), nn.{}(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()]
    return nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


def test_weights_go_back_only_into_the_code_that_they_were_trained_in(run: Run) -> None:
    """Another activation has the same tensors: they fit, and mean nothing there."""
    folder = run.recipe_file.parent
    for name, activation in (("moved", "ReLU"), ("changed", "Sigmoid")):
        (folder / name).mkdir()
        (folder / name / "net.py").write_text(NET.format(activation))
    (folder / "net.py").write_text(NET.format("ReLU"))
    save_weights(folder / "mine.safetensors", model_from_file(f"{folder}/net.py:make", num_classes=2).state_dict())

    def of(file: str) -> Run:
        return open_run(written(folder, RECIPE.replace("resnet8", f"{file}:make")), folder / "runs", device="cpu")

    train_teacher(of("net.py"))
    teacher, told = run.role("teacher"), r"changed/net\.py:make: the file is not the one in which .* were trained"
    for stage in (tune_prompts, lambda run: export_bundle(run, "teacher")):
        with pytest.raises(UserError, match=told):
            stage(of("changed/net.py"))
    with pytest.raises(UserError, match=told):
        evaluate_path(teacher, arch=f"{folder}/changed/net.py:make", data=None, recipe=None)
    assert export_bundle(of("moved/net.py"), "teacher")["verification"] == {}
    assert evaluate_path(teacher, arch=f"{folder}/moved/net.py:make", data=None, recipe=None)["n"] == 2
