from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from afpkd.data import DATASETS
from afpkd.errors import UserError
from afpkd.models import build_model
from export.passes import outputs_of
from export.sealed import verify_bundle
from tests.export.building import MEAN, SHA, STD, add_to, built, spoil

if TYPE_CHECKING:
    from tests.export.conftest import TinyNet


def test_bundle_holds_what_torch_and_onnx_runtime_say(net: TinyNet, images: NDArray[np.uint8], tmp_path: Path) -> None:
    manifest = built(net, images, tmp_path / "bundle")
    folder = tmp_path / "bundle"
    assert verify_bundle(folder) == manifest
    inputs = torch.from_numpy(images).double() / 255  # an independent preprocessing, in float64
    inputs = ((inputs - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)).float()
    with torch.no_grad():
        logits = copy.deepcopy(net).eval()(inputs).logits.numpy()
    session = onnxruntime.InferenceSession(folder / "fp32.onnx", providers=["CPUExecutionProvider"])
    exported = session.run(["logits"], {"input": inputs.numpy()})[0]
    expected_top1 = 100 * np.mean(exported.argmax(axis=1) == np.arange(300) % 5)
    assert 0 < expected_top1 < 100
    verification = manifest["verification"]["fp32.onnx"]
    assert manifest["torch_top1"] == verification["top1"] == pytest.approx(expected_top1)
    assert (verification["argmax_agreement"], verification["num"], verification["ties"]) == (100, 300, [])
    assert 0 < verification["max_abs_error"] < 1e-4
    assert verification["status"] == "ok"
    with np.load(folder / "golden.npz") as golden:
        row = {image.tobytes(): number for number, image in enumerate(images)}
        chosen = [row[image.tobytes()] for image in golden["images"]]
        np.testing.assert_allclose(golden["logits"], logits[chosen], rtol=1e-4, atol=1e-4)
        largest = np.abs(golden["logits"]).max()
    assert len(set(chosen)) == manifest["golden"]["num"] == 64
    assert manifest["golden"]["tolerances"]["fp32"]["max_abs"] == pytest.approx(1e-3 * largest)


def test_manifest_has_every_key_of_the_contract(net: TinyNet, images: NDArray[np.uint8], tmp_path: Path) -> None:
    manifest = built(net, images, tmp_path / "bundle")
    assert manifest.keys() == {
        *("schema", "role", "arch", "task", "num_classes", "num_params", "macs", "input", "output", "preprocessing"),
        *("files", "golden", "labels", "evaluation", "hashes", "verification", "torch_top1", "lineage"),
        *("build_check", "sensitivity", "activations"),
        *("versions", "git_commit", "machine"),
    }
    assert manifest["macs"]["macs"] == 4 * 8 * 8 * 27 + 64 * 5
    assert manifest["num_params"] == 441
    assert manifest["preprocessing"] == {"layout": "NCHW", "scale": 1 / 255, "mean": list(MEAN), "std": list(STD)}
    assert manifest["lineage"] == {"weights": SHA, "record": SHA, "calibration": None}
    assert net.training, "the caller's model stays as it is"


def test_the_default_student_on_real_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, in_channels=1)
    data = DATASETS["fashion_mnist_5k"].load(tmp_path)
    manifest = built(
        model,
        data.test.images,
        tmp_path / "bundle",
        labels=data.test.labels,
        label_names=data.label_names,
        mean=(0.286,),
        std=(0.353,),
    )
    verify_bundle(tmp_path / "bundle")
    assert manifest["input"]["shape"] == ["batch", 1, 28, 28]
    assert manifest["evaluation"]["num"] == manifest["verification"]["fp32.onnx"]["num"] == 1000
    assert manifest["verification"]["fp32.onnx"]["top1"] == manifest["torch_top1"]
    assert manifest["macs"]["agree"]


def test_a_file_that_strays_is_refused_and_the_old_bundle_stays(
    net: TinyNet, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = built(net, images, tmp_path / "bundle")
    spoil(monkeypatch, "fp32", add_to("fc.bias", 0.02))
    with pytest.raises(UserError, match=r"^student \(tiny\), fp32\.onnx: does not compute what torch computes"):
        built(net, images, tmp_path / "bundle")
    assert verify_bundle(tmp_path / "bundle") == manifest


def test_a_place_that_holds_something_else_is_refused_before_anything_is_made(
    net: TinyNet, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.setattr("export.build.source_from_model", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match=r"thesis\.tex: no part of a bundle"):
        built(net, images, tmp_path)


def test_one_image_of_another_class_is_refused_though_the_golden_ones_agree(
    net: TinyNet, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def change_one(*arguments: Any) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        logits = outputs_of(*arguments)
        if calls == 2:  # the file's turn, after torch's; image 1 is no golden one
            logits[1, logits[1].argmin()] = logits[1].max() + 1
        return logits

    monkeypatch.setattr("export.build.outputs_of", change_one)
    with pytest.raises(UserError, match="1 of 300 images get another class than in torch, the first is number 1 "):
        built(net, images, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_weights_that_are_not_numbers_are_refused(net: TinyNet, images: NDArray[np.uint8], tmp_path: Path) -> None:
    with torch.no_grad():
        net.fc.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"student \(tiny\): its output holds NaN"):
        built(net, images, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": ("fp32", "fp4")}, "precision 'fp4' cannot be exported: known are fp32, fp16, int8"),
        ({"precisions": ("int8",)}, "int8 needs calibration images"),
        ({"label_names": ["a", "b"]}, "5 classes, but the data set names 2"),
        ({"mean": (0.5,)}, "one mean and std a channel"),
    ],
)
def test_a_wrong_setting_is_one_line(
    changes: dict[str, Any], message: str, net: TinyNet, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        built(net, images, tmp_path / "bundle", **changes)
    assert not list(tmp_path.iterdir())
