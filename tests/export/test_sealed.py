"""What must never pass: a changed byte, a path outside, a link, a header that promises more than there is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from afpkd.errors import UserError
from afpkd.record import write_record
from export import bundle, sealed
from export.sealed import verify_bundle
from pipeline.evaluation import evaluate_path

Pixels = NDArray[np.uint8]
Written = Callable[..., dict[str, Any]]


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["fp32.onnx", "golden.npz", "labels.txt", "eval.npy", "eval_labels.npy"])
def test_every_changed_or_missing_file_is_named(name: str, written: Written, images: Pixels, tmp_path: Path) -> None:
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


def test_a_path_that_leaves_the_folder_is_refused(written: Written, images: Pixels, tmp_path: Path) -> None:
    manifest = written(tmp_path / "bundle", images)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    sha256 = hashlib.sha256(b"secret").hexdigest()
    for name in ("../secret", str(secret), "folder/file", ".hidden"):
        write_record(
            tmp_path / "bundle" / "manifest.json", {**manifest, "hashes": {**manifest["hashes"], name: sha256}}
        )
        with pytest.raises(UserError, match=f"{name} leaves the bundle's folder"):
            verify_bundle(tmp_path / "bundle")


def test_a_file_that_no_hash_covers_is_refused(written: Written, images: Pixels, tmp_path: Path) -> None:
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
        (_no_golden, "malformed: it: 'golden' is a required property"),
        (_hashes_are_a_list, "malformed"),
        (
            lambda manifest: manifest.update(schema="afpkd.bundle/9"),
            "schema 'afpkd.bundle/9', expected 'afpkd.bundle/1'",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, written: Written, images: Pixels, tmp_path: Path
) -> None:
    written(tmp_path / "bundle", images)
    edited(tmp_path / "bundle", change)
    with pytest.raises(UserError, match=rf"manifest\.json: .*{message}"):
        verify_bundle(tmp_path / "bundle")


def test_links_are_refused_though_their_bytes_are_right(written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    for name in ("labels.txt", "manifest.json"):
        (tmp_path / "bundle" / name).rename(tmp_path / name)
        (tmp_path / "bundle" / name).symlink_to(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}: is a link"):
            verify_bundle(tmp_path / "bundle")
        (tmp_path / "bundle" / name).unlink()
        (tmp_path / name).rename(tmp_path / "bundle" / name)
    verify_bundle(tmp_path / "bundle")


def test_a_huge_manifest_is_not_read(
    written: Written, images: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "bundle", images)
    monkeypatch.setattr(sealed, "MAX_MANIFEST_BYTES", 1000)
    monkeypatch.setattr(sealed, "read_manifest", lambda _: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"manifest\.json: [0-9,]+ bytes, 1,000 at most"):
        verify_bundle(tmp_path / "bundle")


def test_a_manifest_nested_without_end_is_one_line(written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    (tmp_path / "bundle" / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"manifest\.json: not a readable record \(maximum recursion"):
        verify_bundle(tmp_path / "bundle")


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(bundle._SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda m: m.update(torch_top1=101), "torch_top1"),
        (lambda m: m["files"][0].update(runtime="tflite"), "files.0.runtime"),
        (lambda m: m["files"][0].update(min_version="ten"), "files.0.min_version"),
        (lambda m: m["files"][0].update(status="fine"), "files.0.status"),
        (lambda m: m["verification"]["fp32.onnx"].pop("drop"), "verification.fp32.onnx"),
        (lambda m: m["preprocessing"].update(std=[0, 1, 1]), "preprocessing.std.0"),
        (lambda m: m.update(lineage={}), "lineage"),
        (lambda m: m.update(colour="red"), "'colour' was unexpected"),
    ],
)
def test_what_the_schema_does_not_know_is_named(
    change: Callable[[dict[str, Any]], object], where: str, written: Written, images: Pixels, tmp_path: Path
) -> None:
    written(tmp_path / "bundle", images)
    edited(tmp_path / "bundle", change)
    with pytest.raises(UserError, match=rf"manifest\.json: malformed: .*{where}"):
        verify_bundle(tmp_path / "bundle")


def test_a_bundle_without_a_file_for_this_machine_is_one_line(written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    edited(tmp_path / "bundle", lambda manifest: manifest["files"][0].update(runtime="tensorrt"))
    with pytest.raises(UserError, match=r"bundle: no fp32 file for onnxruntime: the bundle has fp32 \(tensorrt\)"):
        evaluate_path(tmp_path / "bundle", arch=None, data=None, recipe=None)
