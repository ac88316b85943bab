from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from afpkd.data import DATASETS
from afpkd.models import build_model
from afpkd.record import UserError
from export import build
from export.build import build_bundle
from export.calibration import Calibration, calibration_images
from export.files import Maker, Planned
from export.quantize import Int8
from export.sealed import verify_bundle

if TYPE_CHECKING:
    from tests.export.conftest import TinyNet

SHA = "0" * 64
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def built(net: nn.Module, images: NDArray[np.uint8], out: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "role": "student",
        "arch": "tiny",
        "images": images,
        "labels": np.arange(len(images)) % 5,
        "label_names": list("abcde"),
        "mean": MEAN,
        "std": STD,
        "precisions": ("fp32",),
        "opset": 18,
        "lineage": {"weights": SHA, "record": SHA},
        "out": out,
    }
    return build_bundle(net, **{**arguments, **changes})


def spoil(monkeypatch: pytest.MonkeyPatch, precision: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Files of this precision are not quite the network."""
    right = Maker.graph

    def wrong(self: Maker, file: Planned) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(right(self, file))
        if file.precision == precision:
            change(proto)
        return proto

    monkeypatch.setattr(Maker, "graph", wrong)


def add_to(name: str, amount: float) -> Callable[[onnx.ModelProto], None]:
    """Move the first value of the weight whose name ends so."""

    def change(proto: onnx.ModelProto) -> None:
        (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name.endswith(name))
        values = numpy_helper.to_array(weight).copy()
        values.flat[0] += np.array(amount, values.dtype)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    return change


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
        *("build_check", "sensitivity"),
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


def test_one_image_of_another_class_is_refused_though_the_golden_ones_agree(
    net: TinyNet, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, calls = build._predict, 0

    def change_one(*arguments: Any) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        logits = predict(*arguments)
        if calls == 2:  # the file's turn, after torch's; image 1 is no golden one
            logits[1, logits[1].argmin()] = logits[1].max() + 1
        return logits

    monkeypatch.setattr(build, "_predict", change_one)
    with pytest.raises(UserError, match="1 of 300 images get another class than in torch, the first is number 1 "):
        built(net, images, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_weights_that_are_not_numbers_are_refused(net: TinyNet, images: NDArray[np.uint8], tmp_path: Path) -> None:
    with torch.no_grad():
        net.fc.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"student \(tiny\): its logits hold NaN"):
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


THREE = ("fp32", "fp16", "int8")


@pytest.fixture(name="train")
def _train(images: NDArray[np.uint8]) -> Calibration:
    more = np.random.default_rng(7).integers(0, 256, (600, *images.shape[1:]), dtype=np.uint8)
    return calibration_images(more, seed=3)


def test_three_precisions_are_checked_and_listed_by_runtime(
    net: TinyNet, images: NDArray[np.uint8], train: Calibration, tmp_path: Path
) -> None:
    manifest = built(net, images, tmp_path / "bundle", precisions=THREE, calibration=train)
    assert verify_bundle(tmp_path / "bundle") == manifest
    keys = ("path", "precision", "runtime", "min_version", "max_version", "opset", "status")
    assert [tuple(entry[key] for key in keys) for entry in manifest["files"]] == [
        ("fp32.onnx", "fp32", "onnxruntime", "1.18", None, 18, "ok"),
        ("fp32.onnx", "fp32", "tensorrt", "10.0", None, 18, "ok"),
        ("fp16.onnx", "fp16", "onnxruntime", "1.18", None, 18, "ok"),
        ("fp16.onnx", "fp16", "tensorrt", "10.0", None, 18, "ok"),
        ("int8.onnx", "int8", "onnxruntime", "1.18", None, 18, "ok"),
        ("int8-tensorrt.onnx", "int8", "tensorrt", "10.0", None, 19, "ok"),
    ]
    checked = manifest["verification"]
    assert checked["fp32.onnx"]["sqnr_db"] > 100 > checked["fp16.onnx"]["sqnr_db"] > 50
    assert 50 > checked["int8.onnx"]["sqnr_db"] > 20
    assert checked["int8-tensorrt.onnx"]["sqnr_db"] == pytest.approx(checked["int8.onnx"]["sqnr_db"], abs=2)
    for facts in checked.values():
        assert facts["drop"] == pytest.approx(manifest["torch_top1"] - facts["top1"])
        assert (facts["num"], facts["max_drop"], facts["reason"]) == (300, 1.0, None)
    for name in checked:
        graph = onnx.load(tmp_path / "bundle" / name).graph
        assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


def test_a_file_is_held_against_the_logits_of_the_image_it_stands_for(
    net: TinyNet, images: NDArray[np.uint8], train: Calibration, tmp_path: Path
) -> None:
    """The numbers of the manifest, computed again with numpy and a session of our own."""
    manifest = built(net, images, tmp_path / "bundle", precisions=("fp16",), calibration=train)
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (MEAN, STD))
    pixels = (images.astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        want = copy.deepcopy(net).eval()(torch.from_numpy(pixels)).logits.numpy().astype(np.float64)
    got = onnxruntime.InferenceSession(tmp_path / "bundle" / "fp16.onnx").run(None, {"input": pixels})[0]
    error = got.astype(np.float64) - want
    found = manifest["verification"]["fp16.onnx"]
    assert found["max_abs_error"] == pytest.approx(np.abs(error).max(), rel=0.02)
    assert found["sqnr_db"] == pytest.approx(10 * np.log10((want**2).sum() / (error**2).sum()), abs=0.1)
    assert found["top1"] == pytest.approx(100 * np.mean(got.argmax(axis=1) == np.arange(300) % 5))


def test_what_loses_too_much_is_listed_with_the_reason(
    net: TinyNet, images: NDArray[np.uint8], train: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = copy.deepcopy(net).eval()(torch.from_numpy(images).float() / 255).logits.argmax(dim=1).numpy()
    spoil(monkeypatch, "int8", add_to("fc.bias", 50.0))
    said: list[str] = []
    manifest = built(
        net, images, tmp_path / "b", labels=labels, precisions=THREE, calibration=train, max_drop=2.0, say=said.append
    )
    status = {entry["path"]: (entry["status"], entry["reason"]) for entry in manifest["files"]}
    assert status["fp32.onnx"] == status["fp16.onnx"] == ("ok", None)
    for name in ("int8.onnx", "int8-tensorrt.onnx"):
        facts = manifest["verification"][name]
        assert status[name] == (facts["status"], facts["reason"])
        assert facts["status"] == "over budget"
        assert f"int8 loses {facts['drop']:.2f} points of top-1" in facts["reason"]
        assert "more than 2" in facts["reason"]
        assert any(name in line and "over budget: int8 loses" in line for line in said)
    verify_bundle(tmp_path / "b")


@pytest.mark.parametrize(("factor", "status"), [(0.1, "ok"), (10.0, "over budget")])
def test_fp16_that_overflows_is_over_budget_whatever_its_accuracy(
    factor: float, status: str, net: TinyNet, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    with torch.no_grad():
        net.conv.weight.mul_(1e4)
        net.norm.weight.mul_(factor)
    manifest = built(net, images, tmp_path / "bundle", precisions=("fp32", "fp16"), max_drop=100.0)
    facts = manifest["verification"]["fp16.onnx"]
    assert facts["status"] == status
    assert (facts["reason"] is None) == (status == "ok")
    if status != "ok":
        assert re.fullmatch(r"fp16: \w+ reaches [0-9.e+]+, beyond float16's 65504", facts["reason"])
    assert manifest["verification"]["fp32.onnx"]["status"] == "ok"
    assert verify_bundle(tmp_path / "bundle") == manifest


def test_legacy_files_are_for_tensorrt_8_and_of_opset_17(
    net: TinyNet, images: NDArray[np.uint8], train: Calibration, tmp_path: Path
) -> None:
    manifest = built(net, images, tmp_path / "bundle", precisions=THREE, calibration=train, legacy=True)
    old = [entry for entry in manifest["files"] if entry["max_version"] == "8.6"]
    assert [(entry["path"], entry["runtime"], entry["min_version"]) for entry in old] == [
        (f"{precision}-legacy.onnx", "tensorrt", "8.5") for precision in THREE
    ]
    for entry in old:
        proto = onnx.load(tmp_path / "bundle" / entry["path"])
        assert [(found.domain, found.version) for found in proto.opset_import] == [("", 17)]
        assert manifest["verification"][entry["path"]]["status"] == "ok"
    verify_bundle(tmp_path / "bundle")


def test_lineage_names_every_calibration_image(
    net: TinyNet, images: NDArray[np.uint8], train: Calibration, tmp_path: Path
) -> None:
    settings = Int8(method="minmax", exclude=("fc",))
    manifest = built(net, images, tmp_path / "b", precisions=("int8",), calibration=train, int8=settings)
    found = manifest["lineage"]["calibration"]
    assert (found["source"], found["num"], found["method"], found["quantizer"]) == (
        "train",
        512,
        "minmax",
        "onnxruntime",
    )
    assert found["ids"] == train.ids
    assert found["sha256"] == hashlib.sha256(train.images.tobytes()).hexdigest()
    assert found["exclude"] == ["fc"]
    assert {row["layer"] for row in manifest["sensitivity"]} == {"conv", "fc"}


def test_a_builder_is_asked_about_each_file_for_tensorrt_alone(
    net: TinyNet, images: NDArray[np.uint8], train: Calibration, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []

    def builder(path: Path, precision: str) -> dict[str, Any]:
        onnx.load(path)  # it lies there while it is asked about
        asked.append((path.name, precision))
        return {"status": "built", "build_seconds": 0.5, "layer_types": {"Half": 3}}

    manifest = built(net, images, tmp_path / "b", precisions=THREE, calibration=train, build_check=builder)
    assert asked == [("fp32.onnx", "fp32"), ("fp16.onnx", "fp16"), ("int8-tensorrt.onnx", "int8")]
    assert manifest["build_check"]["fp16.onnx"]["layer_types"] == {"Half": 3}
    assert manifest["build_check"]["int8.onnx"] == {
        "status": None,
        "reason": "not checked: the file is not for TensorRT",
    }
    alone = built(net, images, tmp_path / "c")
    assert alone["build_check"] == {"fp32.onnx": {"status": None, "reason": "not checked: no builder was given"}}
