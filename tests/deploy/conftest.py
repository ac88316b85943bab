"""A bundle made by hand from the contract: one linear layer, whose logits numpy knows too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploy import presets
from deploy.presets import Preset, WarmUp
from tests.deploy.fakes import Install, installer
from tests.deploy.reaper import start_reaper

CHANNELS, SIDE, CLASSES = 3, 4, 5
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@dataclass(frozen=True)
class HandMadeBundle:
    folder: Path
    wrong: int
    """How many of the evaluation labels disagree with the network."""

    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        return manifest

    def replace(self, name: str, data: bytes) -> None:
        """Put other bytes under a name, and make the manifest agree with them."""
        (self.folder / name).write_bytes(data)
        manifest = self.manifest()
        manifest["hashes"][name] = hashlib.sha256(data).hexdigest()
        (self.folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session", autouse=True)
def _reaper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test started outlives the test run, be it killed."""
    with start_reaper(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture
def bundle(tmp_path: Path) -> HandMadeBundle:
    return hand_made_bundle(tmp_path / "bundle")


def hand_made_bundle(folder: Path) -> HandMadeBundle:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    weight = linear_weight()
    images = rng.integers(0, 256, size=(80, CHANNELS, SIDE, SIDE), dtype=np.uint8)
    logits = reference_logits(images, weight)
    labels, wrong = logits.argmax(axis=1), 8
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    (folder / "fp32.onnx").write_bytes(linear_onnx(weight))
    np.savez(folder / "golden.npz", images=images[:16], logits=logits[:16].astype(np.float32))
    np.save(folder / "eval.npy", images)
    np.save(folder / "eval_labels.npy", labels.astype(np.int64))
    (folder / "labels.txt").write_text("\n".join("abcde"))
    manifest = manifest_of(folder, len(images), float(1e-3 * np.abs(logits).max()))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return HandMadeBundle(folder, wrong)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A preset that judges nothing about this machine and takes no time."""
    warm_up = WarmUp(min_seconds=0, min_count=30, window=10, tolerance=1e9, max_seconds=10)
    preset = Preset(name="instant", min_seconds=0, min_count=200, warm_up=warm_up)
    monkeypatch.setitem(presets._PRESETS, preset.name, preset)
    yield preset.name


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes the fake of a TensorRT release importable."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    return installer(folder, monkeypatch)


@pytest.fixture
def onnx_path(bundle: HandMadeBundle) -> Path:
    return bundle.folder / "fp32.onnx"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where engines are kept."""
    return tmp_path / "engines"


def linear_weight() -> NDArray[np.float64]:
    """The weight of the hand-made bundle's network."""
    return np.random.default_rng(0).normal(size=(CHANNELS * SIDE * SIDE, CLASSES))


def reference_logits(images: NDArray[np.uint8], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    mean, std = np.array(MEAN)[:, None, None], np.array(STD)[:, None, None]
    logits: NDArray[np.float64] = ((images / 255 - mean) / std).reshape(len(images), -1) @ weight
    return logits


def linear_onnx(weight: NDArray[np.float64], kind: int = TensorProto.FLOAT) -> bytes:
    """`kind`: the type of input, output and weights."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", kind, ["batch", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", kind, ["batch", CLASSES])],
        [numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(kind)), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def manifest_of(folder: Path, num_images: int, max_abs: float) -> dict[str, Any]:
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    tolerances = {"max_abs": max_abs, "cosine": 0.99999, "argmax_agreement": 100.0}
    return {
        "schema": "afpkd.bundle/1",
        "role": "student",
        "arch": "linear",
        "task": "classification",
        "num_classes": CLASSES,
        "num_params": CHANNELS * SIDE * SIDE * CLASSES,
        "macs": {"macs": CHANNELS * SIDE * SIDE * CLASSES},
        "input": {"name": "input", "shape": ["batch", CHANNELS, SIDE, SIDE], "dtype": "float32"},
        "output": {"name": "logits", "shape": ["batch", CLASSES], "dtype": "float32"},
        "preprocessing": {"layout": "NCHW", "scale": 1 / 255, "mean": MEAN, "std": STD},
        "files": [
            {
                "precision": "fp32",
                "runtime": "any",
                "min_version": None,
                "max_version": None,
                "opset": 18,
                "path": "fp32.onnx",
                "sha256": hashes["fp32.onnx"],
                "size_bytes": (folder / "fp32.onnx").stat().st_size,
                "status": "ok",
                "reason": None,
                "tolerances": tolerances,
            }
        ],
        "golden": {
            "path": "golden.npz",
            "num": 16,
            "tolerances": {"fp32": tolerances},
        },
        "labels": "labels.txt",
        "evaluation": {"images": "eval.npy", "labels": "eval_labels.npy", "num": num_images},
        "hashes": hashes,
        "verification": {},
        "build_check": {},
        "sensitivity": [],
        "torch_top1": 100.0,
        "lineage": {"calibration": None},
        "versions": {},
        "git_commit": None,
        "machine": {},
    }
