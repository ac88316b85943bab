"""A bundle's arrays and names before anything opens them: headers, archives, sizes, a line a class."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from afpkd.errors import UserError
from export import sealed
from export.sealed import verify_bundle
from tests.export.test_sealed import edited

Pixels = NDArray[np.uint8]
Written = Callable[..., dict[str, Any]]


def replaced(folder: Path, name: str, data: bytes) -> None:
    """Other bytes under a name, and a manifest that agrees with them: hashes alone find nothing."""
    (folder / name).write_bytes(data)
    edited(folder, lambda manifest: manifest["hashes"].update({name: hashlib.sha256(data).hexdigest()}))


def npy(array: NDArray[Any], **header: Any) -> bytes:
    """An .npy whose header says what it is told to."""
    file = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, {**facts, **header})
    return file.getvalue() + array.tobytes()


def archive(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as found:
        for name, data in members.items():
            found.writestr(f"{name}.npy", data)
    return file.getvalue()


def test_a_header_that_promises_more_than_there_is(written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    for header in ({"shape": (10**12, 3, 8, 8)}, {"shape": (299, 3, 8, 8)}, {"fortran_order": True}):
        replaced(tmp_path / "bundle", "eval.npy", npy(images, **header))
        with pytest.raises(UserError, match=r"eval\.npy: .* do not trust this bundle"):
            verify_bundle(tmp_path / "bundle")
    replaced(tmp_path / "bundle", "eval.npy", npy(images)[:-1])
    with pytest.raises(UserError, match=r"eval\.npy: .* bytes do not hold uint8 \(300, 3, 8, 8\)"):
        verify_bundle(tmp_path / "bundle")
    replaced(tmp_path / "bundle", "eval.npy", npy(images))
    verify_bundle(tmp_path / "bundle")


def test_an_oversized_header_is_not_parsed(written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    text = "(" * 60_000
    replaced(tmp_path / "bundle", "eval.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    with pytest.raises(UserError, match=r"eval\.npy: not a header of ours .* do not trust"):
        verify_bundle(tmp_path / "bundle")


def test_pickles_are_refused(written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}] * 300, dtype=object), allow_pickle=True)
    replaced(tmp_path / "bundle", "eval_labels.npy", (tmp_path / "objects.npy").read_bytes())
    with pytest.raises(UserError, match=r"eval_labels\.npy: object \(300,\), the manifest says int64"):
        verify_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda images, logits: archive(images=images), "holds images.npy, expected images.npy, logits.npy"),
        (lambda images, logits: archive(images=images, logits=logits, more=b""), "holds images.npy, logits.npy, more"),
        (lambda images, logits: archive(zipfile.ZIP_DEFLATED, images=images, logits=logits), "is compressed"),
        (lambda images, logits: archive(images=images, logits=logits[:-4]), "bytes do not hold float32"),
        (lambda images, logits: b"no archive", "not an archive of arrays"),
    ],
)
def test_golden_archives_hold_what_they_must_and_no_more(
    data: Callable[[bytes, bytes], bytes], message: str, written: Written, images: Pixels, tmp_path: Path
) -> None:
    written(tmp_path / "bundle", images)
    made = data(npy(images[:2]), npy(np.ones((2, 5), np.float32)))
    replaced(tmp_path / "bundle", "golden.npz", made)
    with pytest.raises(UserError, match=rf"golden\.npz: .*{message}"):
        verify_bundle(tmp_path / "bundle")


def _resealed(folder: Path, labels: bytes) -> None:
    (folder / "labels.txt").write_bytes(labels)
    edited(folder, lambda manifest: manifest["hashes"].update({"labels.txt": hashlib.sha256(labels).hexdigest()}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: labels + b"one more\n", "names, .* are not one number"),
        (lambda labels: labels.replace(b"\n", "\u2028".encode(), 1) + b"x\n", "names, .* are not one number"),
        (lambda labels: labels[:-2].rpartition(b"\n")[0], "names, .* are not one number"),
        (lambda labels: labels[:-2] + b"\xe9\n", "can't decode"),
    ],
)
def test_there_is_a_line_a_class(
    change: Callable[[bytes], bytes], said: str, written: Written, images: Pixels, tmp_path: Path
) -> None:
    written(tmp_path / "bundle", images)
    _resealed(tmp_path / "bundle", change((tmp_path / "bundle" / "labels.txt").read_bytes()))
    with pytest.raises(UserError, match=rf"labels\.txt: .*{said}"):
        verify_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name_more", [True, False])
def test_another_number_of_classes_than_scores_is_refused(
    written: Written, images: Pixels, tmp_path: Path, *, name_more: bool
) -> None:
    num = written(tmp_path / "bundle", images)["num_classes"]
    if name_more:
        _resealed(tmp_path / "bundle", (tmp_path / "bundle" / "labels.txt").read_bytes() + b"one more\n")
    edited(tmp_path / "bundle", lambda manifest: manifest.update(num_classes=num + 1))
    told = f"{num + name_more} names, {num} scores of the network and num_classes = {num + 1} are not one number"
    with pytest.raises(UserError, match=told):
        verify_bundle(tmp_path / "bundle")


def test_a_huge_file_of_names_is_not_read(
    written: Written, images: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "bundle", images)
    size = (tmp_path / "bundle" / "manifest.json").stat().st_size
    monkeypatch.setattr(sealed, "MAX_MANIFEST_BYTES", 2 * size)
    _resealed(tmp_path / "bundle", b"\n" * 3 * size)
    with pytest.raises(UserError, match=r"labels\.txt: [\d,]+ bytes of names: do not trust it"):
        verify_bundle(tmp_path / "bundle")


def flagged(data: bytes, at: int, value: int) -> bytes:
    """An archive whose directory and members say `value` (in the directory) at a place of theirs."""
    changed = bytearray(data)
    for magic, behind in ((b"PK\x01\x02", at), (b"PK\x03\x04", at - 2)):
        place = changed.find(magic)
        while place >= 0:
            changed[place + behind] |= value
            place = changed.find(magic, place + 4)
    return bytes(changed)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(8, 1, "encrypted"), (8, 0x20, "patched data"), (8, 0x40, "strong encryption"), (6, 99, "version")],
)
def test_archives_that_python_cannot_open_are_one_line(
    at: int, value: int, said: str, written: Written, images: Pixels, tmp_path: Path
) -> None:
    written(tmp_path / "bundle", images)
    replaced(tmp_path / "bundle", "golden.npz", flagged((tmp_path / "bundle" / "golden.npz").read_bytes(), at, value))
    with pytest.raises(UserError, match=rf"golden\.npz: not an archive of arrays \(.*{said}.*\[E_BUNDLE\]"):
        verify_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("header", ["(" * 16, "[[[" * 800, "{1: 2}", "1" * 99, "\0", "{'descr': 'O'", ""])
def test_a_header_that_is_none_is_one_line(header: str, written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    made = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    replaced(tmp_path / "bundle", "eval.npy", made)
    with pytest.raises(UserError, match=r"eval\.npy: not a header of ours"):
        verify_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["fp32.onnx", "golden.npz", "eval.npy", "eval_labels.npy", "labels.txt"])
def test_a_file_without_end_is_not_hashed(name: str, written: Written, images: Pixels, tmp_path: Path) -> None:
    """Its bytes would be read for hours: sizes are compared first."""
    written(tmp_path / "bundle", images)
    os.truncate(tmp_path / "bundle" / name, 4 << 40)
    with pytest.raises(UserError, match=rf"{name}: 4,398,046,511,104 bytes, .* by the manifest"):
        verify_bundle(tmp_path / "bundle")


def test_open_sizes_are_refused(written: Written, images: Pixels, tmp_path: Path) -> None:
    written(tmp_path / "bundle", images)
    edited(tmp_path / "bundle", lambda manifest: manifest["output"].update(shape=["batch", "k"]))
    with pytest.raises(UserError, match=r"bundle/manifest\.json: malformed: the sizes \[3, 8, 8, 'k'\] are open"):
        verify_bundle(tmp_path / "bundle")
