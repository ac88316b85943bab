from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from deploy.onnx_checks import check_onnx
from export.calibration import Calibration, calibration_images
from export.quantize import Int8
from export.sealed import verify_bundle
from tests.export.building import MEAN, STD, add_to, built, spoil

if TYPE_CHECKING:
    from tests.export.conftest import TinyNet


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
        assert check_onnx(tmp_path / "bundle" / entry["path"], "8.5") == []
    verify_bundle(tmp_path / "bundle")
    (stored,) = check_onnx(tmp_path / "bundle" / "int8.onnx", "8.6")[1:]  # the first: its opset
    assert stored.code == "stored"


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
