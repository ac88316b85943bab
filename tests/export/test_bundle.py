from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from afpkd.errors import UserError
from afpkd.record import write_record
from export import bundle as module
from export.bundle import Evaluation, Golden, golden_indices, preprocess, read_manifest, write_bundle
from export.files import PRECISIONS, planned_files
from export.sealed import verify_bundle
from tests.pipeline.conftest import bundle_manifest

Pixels = NDArray[np.uint8]
Written = Callable[..., dict[str, Any]]
RULE = {"layout": "NCHW", "scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def test_manifest_says_what_lies_there(written: Written, images: Pixels, tmp_path: Path) -> None:
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
            "status": "ok",
            "reason": None,
            "tolerances": {"max_abs": 0.1, "cosine": 0.99, "argmax_agreement": 100.0},
        }
    ]
    assert manifest["schema"] == "afpkd.bundle/1"
    assert manifest["task"] == "classification"
    assert (manifest["role"], manifest["num_classes"]) == ("student", 5)
    assert manifest["input"] == {"name": "input", "shape": ["batch", 3, 8, 8], "dtype": "float32"}
    assert manifest["output"] == {"name": "logits", "shape": ["batch", 5], "dtype": "float32"}
    assert {"versions", "git_commit", "machine"} <= manifest.keys()


def test_arrays_come_back(written: Written, images: Pixels, tmp_path: Path) -> None:
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


def test_the_same_input_gives_the_same_bundle(written: Written, images: Pixels, tmp_path: Path) -> None:
    assert written(tmp_path / "a", images) == written(tmp_path / "b", images)


def test_a_new_bundle_replaces_the_whole_old_one(written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    (tmp_path / "bundle" / "int8.onnx").write_bytes(b"of an older recipe")
    written(tmp_path / "bundle", images, b"another model")
    verify_bundle(tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "int8.onnx").exists()
    assert (tmp_path / "bundle" / "fp32.onnx").read_bytes() == b"another model"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "made"}


@pytest.mark.parametrize("step", ["write_text", "write_record", "sha256_of"])
def test_a_failure_half_way_leaves_the_old_bundle(
    step: str, written: Written, images: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_the_manifest_comes_last(
    written: Written, images: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[set[str]] = []

    def spy(path: Path, record: dict[str, Any]) -> None:
        there.append({other.name for other in path.parent.iterdir()})
        assert not (tmp_path / "bundle").exists()
        write_record(path, record)

    monkeypatch.setattr(module, "write_record", spy)
    manifest = written(tmp_path / "bundle", images)
    assert there == [set(manifest["hashes"])]


def test_what_a_killed_run_left_is_swept(written: Written, images: Pixels, tmp_path: Path) -> None:
    for state in ("new", "old"):
        (tmp_path / f".bundle.{state}").mkdir()
        (tmp_path / f".bundle.{state}" / "stale.onnx").write_bytes(b"")
    written(tmp_path / "bundle", images)
    verify_bundle(tmp_path / "bundle")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "made"}


def test_a_folder_of_other_things_is_never_replaced(written: Written, images: Pixels, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex: no part of a bundle, and would be lost"):
        written(tmp_path / "home", images)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UserError, match=r"thesis\.tex: is a file"):
        written(tmp_path / "home" / "thesis.tex", images)


def test_somebodys_models_are_no_part_of_a_bundle(written: Written, images: Pixels, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("resnet.onnx", "fp32.onnx"):
        model = tmp_path / "models" / name
        model.write_bytes(b"months of work")
        with pytest.raises(UserError, match=rf"{name}: no part of a bundle, and would be lost"):
            written(tmp_path / "models", images)
        assert model.read_bytes() == b"months of work"
        model.unlink()


@pytest.mark.parametrize("quantizer", ["onnxruntime", "modelopt"])
def test_every_file_that_is_planned_makes_way_for_a_new_bundle(
    quantizer: str, written: Written, images: Pixels, tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "golden.npz").touch()
    planned = planned_files(PRECISIONS, 18, legacy=quantizer != "modelopt", quantizer=quantizer)
    for file in planned:
        (tmp_path / "bundle" / file.name).write_bytes(b"of an outdated bundle, whose manifest is gone")
    written(tmp_path / "bundle", images)
    verify_bundle(tmp_path / "bundle")


def test_the_folder_that_a_shell_stands_in_is_not_replaced(
    written: Written, images: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out in (Path(), tmp_path / "empty"):
        with pytest.raises(UserError, match="the folder you are in would be replaced"):
            written(out, images)
    written(Path("..", "empty", "bundle"), images)
    verify_bundle(tmp_path / "empty" / "bundle")


def test_a_bundle_lies_where_a_link_points(written: Written, images: Pixels, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for _ in range(2):
        written(tmp_path / "link", images)
        verify_bundle(tmp_path / "disk")
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link", "made"}
    assert (tmp_path / "link").is_symlink()


def test_a_class_whose_name_is_no_line_is_not_written(images: Pixels, tmp_path: Path) -> None:
    golden = Golden(images[:4], np.zeros((4, 2), np.float32), {})
    told = Evaluation(images, np.zeros(len(images), np.int64), ["cat", "two\u2028lines"])
    with pytest.raises(UserError, match=r"the class 'two\\u2028lines': a name is one line"):
        write_bundle(tmp_path / "bundle", facts={}, files=[], golden=golden, evaluation=told)
    assert not (tmp_path / "bundle").exists()


def test_no_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: no such record"):
        read_manifest(tmp_path)


def test_a_half_edited_manifest_is_one_line_for_whoever_measures_or_deploys_it(tmp_path: Path) -> None:
    whole = bundle_manifest("bb" * 32)
    write_record(tmp_path / "manifest.json", whole)
    assert read_manifest(tmp_path) == whole
    write_record(tmp_path / "manifest.json", {key: whole[key] for key in whole if key != "golden"})
    with pytest.raises(UserError, match=r"manifest\.json: malformed: it: 'golden' is a required property: export it"):
        read_manifest(tmp_path)
    write_record(tmp_path / "manifest.json", {**whole, "files": [{**whole["files"][0], "path": "../up.onnx"}]})
    with pytest.raises(UserError, match=r"manifest\.json: malformed: files\.0\.path: '\.\./up\.onnx' does not match"):
        read_manifest(tmp_path)


def test_preprocessing_is_the_manifests_formula(images: Pixels) -> None:
    got = preprocess(images, RULE)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    want = ((images.transpose(0, 2, 3, 1) / 255 - mean) / std).transpose(0, 3, 1, 2)  # float64, channels last
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_preprocessing_never_broadcasts_channels(images: Pixels) -> None:
    with pytest.raises(UserError, match="one mean and std a channel"):
        preprocess(images[:, :1], RULE)
    with pytest.raises(UserError, match="layout 'NHWC'"):
        preprocess(images, {**RULE, "layout": "NHWC"})


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
