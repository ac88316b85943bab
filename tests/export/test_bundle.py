from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from afpkd.record import UserError, write_record
from export import bundle as module
from export.bundle import (
    Evaluation,
    Golden,
    ModelFile,
    file_for,
    golden_indices,
    preprocess,
    read_manifest,
    verify_bundle,
    write_bundle,
)

Pixels = NDArray[np.uint8]
FACTS = {
    "role": "student",
    "arch": "tiny",
    "preprocessing": {"layout": "NCHW", "scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
}


def written(out: Path, images: Pixels, model: bytes = b"a model") -> dict[str, Any]:
    source = out.parent / "made" / "fp32.onnx"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(model)
    return write_bundle(
        out,
        facts=FACTS,
        files=[ModelFile(source, "fp32", 18)],
        golden=Golden(images[:2], np.ones((2, 5), np.float32), {"fp32": {"max_abs": 0.1}}),
        evaluation=Evaluation(images, np.arange(len(images)) % 5, list("abcdé")),
    )


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_manifest_says_what_lies_there(images: Pixels, tmp_path: Path) -> None:
    manifest = written(tmp_path / "bundle", images)
    assert verify_bundle(tmp_path / "bundle") == read_manifest(tmp_path / "bundle") == manifest
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"manifest.json", *manifest["hashes"]}
    assert manifest["hashes"].keys() == {"fp32.onnx", "golden.npz", "labels.txt", "eval.npy", "eval_labels.npy"}
    sha256 = hashlib.sha256(b"a model").hexdigest()
    assert manifest["hashes"]["fp32.onnx"] == sha256
    assert manifest["files"] == [
        {
            "precision": "fp32",
            "runtime": "any",
            "min_version": None,
            "max_version": None,
            "opset": 18,
            "path": "fp32.onnx",
            "sha256": sha256,
            "size_bytes": 7,
        }
    ]
    assert manifest["schema"] == "afpkd.bundle/1"
    assert manifest["task"] == "classification"
    assert (manifest["role"], manifest["num_classes"]) == ("student", 5)
    assert manifest["input"] == {"name": "input", "shape": ["batch", 3, 8, 8], "dtype": "float32"}
    assert manifest["output"] == {"name": "logits", "shape": ["batch", 5], "dtype": "float32"}
    assert {"versions", "git_commit", "machine"} <= manifest.keys()


def test_arrays_come_back(images: Pixels, tmp_path: Path) -> None:
    manifest = written(tmp_path / "bundle", images)
    folder = tmp_path / "bundle"
    np.testing.assert_array_equal(np.load(folder / manifest["evaluation"]["images"]), images)
    labels = np.load(folder / manifest["evaluation"]["labels"])
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, np.arange(300) % 5)
    with np.load(folder / manifest["golden"]["path"]) as golden:
        np.testing.assert_array_equal(golden["images"], images[:2])
        np.testing.assert_array_equal(golden["logits"], np.ones((2, 5), np.float32))
    assert (manifest["golden"]["num"], manifest["evaluation"]["num"]) == (2, 300)
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list("abcdé")


def test_the_same_input_gives_the_same_bundle(images: Pixels, tmp_path: Path) -> None:
    assert written(tmp_path / "a", images) == written(tmp_path / "b", images)


def test_a_new_bundle_replaces_the_whole_old_one(images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    (tmp_path / "bundle" / "int8.onnx").write_bytes(b"of an older recipe")
    written(tmp_path / "bundle", images, b"another model")
    verify_bundle(tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "int8.onnx").exists()
    assert (tmp_path / "bundle" / "fp32.onnx").read_bytes() == b"another model"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "made"}


@pytest.mark.parametrize("step", ["write_text", "write_record", "sha256_of"])
def test_a_failure_half_way_leaves_the_old_bundle(
    step: str, images: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = written(tmp_path / "bundle", images)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(module, step, fail)
        with pytest.raises(OSError, match="disk full"):
            written(tmp_path / "bundle", images, b"another model")
    assert verify_bundle(tmp_path / "bundle") == manifest
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "made"}


def test_the_manifest_comes_last(images: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[set[str]] = []

    def spy(path: Path, record: dict[str, Any]) -> None:
        there.append({other.name for other in path.parent.iterdir()})
        assert not (tmp_path / "bundle").exists()
        write_record(path, record)

    monkeypatch.setattr(module, "write_record", spy)
    manifest = written(tmp_path / "bundle", images)
    assert there == [set(manifest["hashes"])]


def test_what_a_killed_run_left_is_swept(images: Pixels, tmp_path: Path) -> None:
    for state in ("new", "old"):
        (tmp_path / f".bundle.{state}").mkdir()
        (tmp_path / f".bundle.{state}" / "stale.onnx").write_bytes(b"")
    written(tmp_path / "bundle", images)
    verify_bundle(tmp_path / "bundle")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "made"}


def test_a_folder_of_other_things_is_never_replaced(images: Pixels, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex: no part of a bundle, and would be lost"):
        written(tmp_path / "home", images)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match=r"thesis\.tex: is a file"):
        written(tmp_path / "home" / "thesis.tex", images)


@pytest.mark.parametrize("name", ["fp32.onnx", "golden.npz", "labels.txt", "eval.npy", "eval_labels.npy"])
def test_every_changed_or_missing_file_is_named(name: str, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    path = tmp_path / "bundle" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: its bytes are not those of the manifest"):
        verify_bundle(tmp_path / "bundle")
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: missing from the bundle"):
        verify_bundle(tmp_path / "bundle")


def test_a_path_that_leaves_the_folder_is_refused(images: Pixels, tmp_path: Path) -> None:
    manifest = written(tmp_path / "bundle", images)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    sha256 = hashlib.sha256(b"secret").hexdigest()
    (tmp_path / "bundle" / "link").symlink_to(secret)
    for name in ("../secret", str(secret), "link"):
        write_record(
            tmp_path / "bundle" / "manifest.json", {**manifest, "hashes": {**manifest["hashes"], name: sha256}}
        )
        with pytest.raises(UserError, match=f"{name} leaves the bundle's folder"):
            verify_bundle(tmp_path / "bundle")


def test_a_file_that_no_hash_covers_is_refused(images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    (tmp_path / "bundle" / "fp32.onnx.data").write_bytes(b"weights from elsewhere")
    with pytest.raises(UserError, match=r"fp32\.onnx\.data: not listed in the manifest"):
        verify_bundle(tmp_path / "bundle")


def _drop_hash(manifest: dict[str, Any]) -> None:
    del manifest["hashes"]["eval.npy"]


def _other_hash(manifest: dict[str, Any]) -> None:
    manifest["files"][0]["sha256"] = "0" * 64


def _no_golden(manifest: dict[str, Any]) -> None:
    del manifest["golden"]


def _hashes_are_a_list(manifest: dict[str, Any]) -> None:
    manifest["hashes"] = list(manifest["hashes"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_hash, "names eval.npy without its hash"),
        (_other_hash, "gives two hashes for fp32.onnx"),
        (_no_golden, r"malformed \(KeyError\('golden'\)\)"),
        (_hashes_are_a_list, "malformed"),
        (
            lambda manifest: manifest.update(schema="afpkd.bundle/9"),
            "schema 'afpkd.bundle/9', expected 'afpkd.bundle/1'",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, images: Pixels, tmp_path: Path
) -> None:
    written(tmp_path / "bundle", images)
    edited(tmp_path / "bundle", change)
    with pytest.raises(UserError, match=rf"manifest\.json: .*{message}"):
        verify_bundle(tmp_path / "bundle")


def test_no_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: no such record"):
        read_manifest(tmp_path)


def test_the_file_for_a_precision_is_one_the_host_can_run() -> None:
    def entry(precision: str, runtime: str) -> dict[str, str]:
        return {"precision": precision, "runtime": runtime, "path": f"{precision}-{runtime}.onnx"}

    manifest = {"files": [entry("int8", "tensorrt"), entry("int8", "onnxruntime"), entry("fp32", "any")]}
    assert file_for(manifest, "int8")["path"] == "int8-onnxruntime.onnx"
    assert file_for(manifest, "fp32")["path"] == "fp32-any.onnx"
    with pytest.raises(UserError, match=r"no fp16 file \(it has: int8, fp32\)"):
        file_for(manifest, "fp16")


def test_preprocessing_is_the_manifests_formula(images: Pixels) -> None:
    got = preprocess(images, FACTS)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    want = ((images.transpose(0, 2, 3, 1) / 255 - mean) / std).transpose(0, 3, 1, 2)  # float64, channels last
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_preprocessing_never_broadcasts_channels(images: Pixels) -> None:
    with pytest.raises(UserError, match="one mean and std a channel"):
        preprocess(images[:, :1], FACTS)
    with pytest.raises(UserError, match="layout 'NHWC'"):
        preprocess(images, {"preprocessing": {**FACTS["preprocessing"], "layout": "NHWC"}})  # type: ignore[dict-item]


def test_golden_images_are_spread_and_distinct(images: Pixels) -> None:
    chosen = golden_indices(images)
    assert len(chosen) == 64
    assert (chosen[0], chosen[-1]) == (0, len(images) - 1)
    assert set(np.diff(chosen)) == {4, 5}  # 299 / 63 = 4.7
    np.testing.assert_array_equal(chosen, golden_indices(images))


def test_golden_images_skip_copies(images: Pixels) -> None:
    copies = np.concatenate([images[:80].repeat(3, axis=0)])
    chosen = golden_indices(copies)
    assert len({image.tobytes() for image in copies[chosen]}) == len(chosen) == 64
    np.testing.assert_array_equal(golden_indices(images[[0, 1, 0, 2]]), [0, 1, 3])


def test_reading_and_checking_need_no_torch() -> None:
    code = "import sys, export.bundle, export.verify; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
