"""Layers that stay float in int8: one list for a recipe's two networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from afpkd.models import build_model
from afpkd.models.wrapped import renormalised
from afpkd.record import Json
from pipeline.exporting import excluded_of
from pipeline.workspace import open_run
from tests.pipeline.recipe_files import written

BOTH, TEACHERS = "layer1.0.conv1", ["layer1.2.conv1", "network.layer1.2.conv2"]
RECORD: Json = {
    **{"num_classes": 10, "in_channels": 1, "image_size": [28, 28]},
    "preprocessing": {"mean": [0.5], "std": [0.5]},
}


@pytest.mark.parametrize(
    ("role", "left"), [("teacher", [BOTH, *TEACHERS]), ("student", [BOTH]), ("undistilled", [BOTH])]
)
def test_a_layer_of_one_network_alone_is_not_asked_of_the_other(role: str, left: list[str], tmp_path: Path) -> None:
    """ResNet-20 has three blocks a stage, ResNet-8 one; the teacher is wrapped for its own normalisation."""
    text = f"""
extends = "default"
[teacher]
arch = "resnet20"
mean = [0.4]
std = [0.3]
[distill]
student = "resnet8"
[export]
int8_exclude = {[BOTH, *TEACHERS, "nowhere", "node_conv2d_4"]}
"""
    run = open_run(written(tmp_path, text), tmp_path / "runs")
    model = build_model("resnet20" if role == "teacher" else "resnet8", num_classes=10, in_channels=1)
    if role == "teacher":
        model = renormalised(model, ([0.5], [0.5]), ([0.4], [0.3]))
    told: list[str] = []
    assert list(excluded_of(run, role, RECORD, model, told.append)) == [*left, "nowhere", "node_conv2d_4"]
    assert sorted(told) == (
        []
        if role == "teacher"
        else [f"export.int8_exclude: {name} is a layer of the teacher alone" for name in TEACHERS]
    )
