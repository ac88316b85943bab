"""Which file of a bundle a runtime gets: one rule, the agent's, for host and device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.agent.bundle import Bundle
from deploy.agent.errors import AgentError

FILES = [  # the old one first: without a version its upper bound alone rules it out
    ("fp32-legacy.onnx", "fp32", "tensorrt", "8.5", "8.6"),
    ("fp32.onnx", "fp32", "onnxruntime", "1.18", None),
    ("fp32.onnx", "fp32", "tensorrt", "10.0", None),
    ("int8.onnx", "int8", "onnxruntime", "1.18", None),
    ("int8-tensorrt.onnx", "int8", "tensorrt", "10.0", None),
    ("int8-legacy.onnx", "int8", "tensorrt", "8.5", "8.6"),
    ("fp16.onnx", "fp16", "any", None, None),
]

TABLE = [  # precision, runtime, version -> file
    ("fp32", "onnxruntime", "1.32.0", "fp32.onnx"),
    ("fp32", "onnxruntime", "1.18", "fp32.onnx"),
    ("fp32", "onnxruntime", "1.17.3", None),
    ("fp32", "onnxruntime", None, "fp32.onnx"),
    ("fp32", "tensorrt", None, "fp32.onnx"),
    ("fp32", "tensorrt", "8.4.1", None),
    ("fp32", "tensorrt", "8.5", "fp32-legacy.onnx"),
    ("fp32", "tensorrt", "8.6.1.6", "fp32-legacy.onnx"),  # an inclusive "8.6" holds all of 8.6
    ("fp32", "tensorrt", "8.7", None),
    ("fp32", "tensorrt", "9.3", None),
    ("fp32", "tensorrt", "10.0.1b6", "fp32.onnx"),
    ("fp32", "tensorrt", "10.3.0", "fp32.onnx"),  # by number, not by letter: 10 is more than 8
    ("fp32", "tensorrt", "11.4.0.106", "fp32.onnx"),
    ("int8", "tensorrt", "10.16.2", "int8-tensorrt.onnx"),
    ("int8", "tensorrt", "8.6.1", "int8-legacy.onnx"),
    ("int8", "tensorrt", None, "int8-tensorrt.onnx"),  # TensorRT-RTX
    ("int8", "onnxruntime", "1.32.0", "int8.onnx"),
    ("fp16", "tensorrt", "8.5.2", "fp16.onnx"),
    ("fp16", "onnxruntime", "1.2", "fp16.onnx"),
    ("fp16", "tensorrt", None, "fp16.onnx"),
    ("fp8", "onnxruntime", "1.32.0", None),
    ("fp32", "tflite", "2.0", None),
]


@pytest.fixture(name="manifest")
def _manifest() -> dict[str, Any]:
    keys = ("path", "precision", "runtime", "min_version", "max_version")
    return {"schema": "afpkd.bundle/1", "files": [dict(zip(keys, row, strict=True)) for row in FILES]}


@pytest.mark.parametrize(("precision", "runtime", "version", "expected"), TABLE)
def test_the_file_for_a_runtime_and_its_version(
    precision: str, runtime: str, version: str | None, expected: str | None, manifest: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    bundle = Bundle(str(tmp_path))
    if expected is not None:
        assert bundle.entry(precision, runtime, version)["path"] == expected
        return
    with pytest.raises(AgentError, match=f"no {precision} file for {runtime}") as caught:
        bundle.entry(precision, runtime, version)
    assert caught.value.code == "E_BUNDLE"


def test_a_file_that_is_not_for_a_version_is_told_with_its_bounds(manifest: dict[str, Any], tmp_path: Path) -> None:
    manifest["files"] = [manifest["files"][1], manifest["files"][2]]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    known = "the bundle has fp32 (onnxruntime from 1.18), fp32 (tensorrt from 10.0)"
    with pytest.raises(AgentError) as caught:
        Bundle(str(tmp_path)).entry("fp32", "tensorrt", "8.5.2")
    legacy = "export again with `legacy = true` under [export], which TensorRT 8.5 and 8.6 read"
    assert str(caught.value) == f"no fp32 file for tensorrt 8.5.2: {known}: {legacy}"
    with pytest.raises(AgentError) as caught:
        Bundle(str(tmp_path)).entry("fp16", "onnxruntime", None)
    assert str(caught.value) == f"no fp16 file for onnxruntime: {known}"


def test_the_first_entry_that_fits_counts(manifest: dict[str, Any], tmp_path: Path) -> None:
    manifest["files"].insert(0, {**manifest["files"][1], "path": "better.onnx"})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert Bundle(str(tmp_path)).entry("fp32", "onnxruntime", "1.32.0")["path"] == "better.onnx"


def test_a_file_outside_the_bundle_is_not_opened(manifest: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    manifest["files"][1]["path"] = "../secret.onnx"
    manifest["hashes"] = {}
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AgentError, match=r"\.\./secret\.onnx leaves the bundle's folder"):
        Bundle(str(tmp_path / "bundle")).model_path("fp32", "onnxruntime", "1.32.0")
