"""Weights, ONNX files, bundles and arrays of a stranger: nothing is run or loaded in part, and one line says why."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from afpkd.checkpoint import load_training_state, load_weights, save_weights
from afpkd.data.coco import Scene, read_canvas
from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.record import sha256_of
from deploy.agent.bundle import Bundle
from deploy.agent.errors import AgentError
from deploy.agent.images import read_images, read_letterboxed
from export.foreign_graph import at_opset, graph_from_file
from export.graph_cost import graph_cost
from export.sealed import verify_bundle
from export.to_onnx import onnx_from_model
from pipeline.cli_cost import cost
from pipeline.reproduce import reproduce
from tests.export.conftest import _written
from tests.export.test_sealed import flagged
from tests.hostile.mutations import JUNK, broken_bytes, broken_document, one_line

SIDE = 32


class Bomb:
    """Unpickled, it would make the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.path}'",))


@pytest.fixture(name="net", scope="module")
def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", num_classes=10, in_channels=3).eval()


def refused(net: torch.nn.Module, path: Path) -> None:
    """The weights are refused in one line, and the network is as it was."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError) as raised:
        load_weights(net, path)
    one_line(raised.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("where", ["whole", "state_dict", "tensor", "training state"])
def test_a_pickle_bomb_does_not_go_off(net: torch.nn.Module, tmp_path: Path, trap: Path, where: str) -> None:
    path = tmp_path / "w.pt"
    state: Any = {**net.state_dict(), "fc.bias": Bomb(trap)}
    torch.save({"whole": Bomb(trap), "state_dict": {"state_dict": state}}.get(where, state), path)
    if where == "training state":
        with pytest.raises(UserError, match="unreadable training state"):
            load_training_state(path, "digest")
    else:
        refused(net, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("seed", range(20))
def test_broken_weights_are_refused_or_whole(net: torch.nn.Module, tmp_path: Path, suffix: str, seed: int) -> None:
    """A flipped bit may lie in a number: then all of it is loaded, and finite. In any other case nothing is."""
    path = tmp_path / f"w{suffix}"
    save_file(net.state_dict(), path) if suffix == ".safetensors" else torch.save(net.state_dict(), path)
    path.write_bytes(broken_bytes(path.read_bytes(), seed))
    other = build_model("resnet8", num_classes=10, in_channels=3)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    try:
        load_weights(other, path)
    except UserError as error:
        one_line(error)
        assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    else:
        assert all(bool(tensor.isfinite().all()) for tensor in other.state_dict().values())


def test_the_old_format_with_changed_bytes_is_refused_or_whole(tmp_path: Path) -> None:
    """torch's reader of pickles raises whatever such bytes make of it: IndexError, AssertionError, TypeError ..."""
    small, chance, path = torch.nn.Linear(2, 3), random.Random(0), tmp_path / "w.pt"
    torch.save({**small.state_dict(), "digest": "x"}, path, _use_new_zipfile_serialization=False)
    states = path.read_bytes()
    torch.save(small.state_dict(), path, _use_new_zipfile_serialization=False)
    reads: list[tuple[bytes, Callable[[], object]]] = [
        (path.read_bytes(), lambda: load_weights(small, path)),
        (states, lambda: load_training_state(path, "x")),
    ]
    for whole, read in reads:
        num_refused = 0
        for _ in range(150):
            changed = bytearray(whole)
            for _ in range(chance.choice([1, 2, 3])):
                changed[chance.randrange(len(whole) - 40)] = chance.randrange(256)
            path.write_bytes(changed)
            try:
                read()
            except UserError as error:
                one_line(error)
                num_refused += 1
        assert num_refused > 25


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda: torch.zeros(4, 3).to_sparse(), "torch.sparse_coo"),
        (lambda: torch.zeros(4, 3, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (lambda: torch.zeros(4, 3, dtype=torch.complex64), "torch.complex64"),
        (lambda: torch.zeros(4, 3, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.qint8), "torch.qint8"),
        (lambda: torch.nested.nested_tensor([torch.zeros(3)] * 4), "nested"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch, of such tensors
def test_a_tensor_that_is_no_plain_one_is_named(made: Callable[[], torch.Tensor], kind: str, tmp_path: Path) -> None:
    small = torch.nn.Linear(3, 4)
    torch.save({**small.state_dict(), "weight": made()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt: weight is no plain tensor \({kind}\): save one of numbers"):
        load_weights(small, tmp_path / "w.pt")


def test_a_number_that_is_infinite_here_is_refused(tmp_path: Path) -> None:
    """float64 holds it, the network's float32 does not."""
    small = torch.nn.Linear(1, 1)
    state = {"weight": torch.full((1, 1), 1e300, dtype=torch.float64), "bias": torch.zeros(1, dtype=torch.float64)}
    torch.save(state, tmp_path / "w.pt")
    refused(small, tmp_path / "w.pt")
    torch.save({**state, "weight": torch.full((1, 1), 0.5, dtype=torch.float64)}, tmp_path / "w.pt")
    assert load_weights(small, tmp_path / "w.pt").startswith("loaded 2 of 2")
    assert (small.weight.dtype, small.weight.item()) == (torch.float32, 0.5)


@pytest.mark.parametrize("junk", range(len(JUNK)))
def test_weights_that_are_no_tensors_are_refused(net: torch.nn.Module, tmp_path: Path, junk: int) -> None:
    path = tmp_path / "w.pt"
    torch.save({**net.state_dict(), "fc.bias": JUNK[junk]}, path)
    refused(net, path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nan", {"fc.bias": torch.full((10,), torch.nan)}),
        ("infinite", {"fc.bias": torch.full((10,), torch.inf)}),
        ("shape", {"fc.bias": torch.zeros(11)}),
        ("scalar", {"fc.bias": torch.tensor(1.0)}),
        ("more", {"another": torch.zeros(1)}),
        ("escape", {"\x1b[2J": torch.zeros(1)}),
    ],
)
def test_weights_of_another_kind_are_refused(net: torch.nn.Module, tmp_path: Path, name: str, change: Any) -> None:
    path = tmp_path / f"{name}.pt"
    torch.save({**net.state_dict(), **change}, path)
    refused(net, path)


def test_a_safetensors_header_that_asks_for_all_memory_is_refused(net: torch.nn.Module, tmp_path: Path) -> None:
    for header in (struct.pack("<Q", 2**62), struct.pack("<Q", 100) + b"{" * 100, b""):
        path = tmp_path / "w.safetensors"
        path.write_bytes(header)
        refused(net, path)


def onnx_or_line(path: Path) -> None:
    try:
        proto = graph_from_file(path, channels=3, image_size=(SIDE, SIDE), num_classes=10)
        graph_cost(at_opset(proto, 18, path), (3, SIDE, SIDE))
    except UserError as error:
        one_line(error)


@pytest.fixture(name="onnx_file", scope="module")
def _onnx_file(net: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("onnx") / "x.onnx"
    onnx_from_model(net, torch.zeros(1, 3, SIDE, SIDE), path)
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(40))
def test_a_broken_onnx_file_is_read_or_one_line(onnx_file: bytes, tmp_path: Path, seed: int) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(broken_bytes(onnx_file, seed))
    onnx_or_line(path)


def model(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [value("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    return content


def elsewhere(location: str) -> TensorProto:
    """A weight whose bytes lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "link.bin", "pipe.bin", "nowhere.bin", ""]
)
def test_weights_outside_the_folder_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(b"secret of 16 byt")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(folder / "pipe.bin")
    path = folder / "x.onnx"
    path.write_bytes(model([helper.make_node("Add", ["x", "w"], ["y"])], [elsewhere(location)]))
    with pytest.raises(UserError) as raised:
        graph_from_file(path, channels=3, image_size=(SIDE, SIDE), num_classes=10)
    one_line(raised.value)


@pytest.mark.parametrize("case", ["circle", "twice", "huge", "negative", "unknown", "empty"])
def test_a_graph_that_cannot_be_is_one_line(tmp_path: Path, case: str) -> None:
    node = helper.make_node
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims={"huge": [2**60], "negative": [-4]}.get(case, [1]))
    weight.raw_data = b"\0" * 4
    nodes = {
        "circle": [node("Relu", ["b"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["a", "w"], ["y"])],
        "twice": [node("Relu", ["x"], ["y"]), node("Add", ["x", "w"], ["y"])],
        "unknown": [node("NoSuchOperator", ["x", "w"], ["y"])],
        "empty": [],
    }.get(case, [node("Add", ["x", "w"], ["y"])])
    path = tmp_path / "x.onnx"
    path.write_bytes(model(nodes, [weight]))
    with pytest.raises(UserError) as raised:
        graph_from_file(path, channels=3, image_size=(SIDE, SIDE), num_classes=10)
    one_line(raised.value)


@pytest.fixture(name="bundle")
def _bundle(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    _written(tmp_path / "bundle", images)
    return tmp_path / "bundle"


@pytest.mark.parametrize("seed", range(60))
def test_a_manifest_of_junk_is_held_to_its_schema(bundle: Path, trap: Path, seed: int) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(broken_document(json.loads(path.read_text()), seed)))
    try:
        verify_bundle(bundle)
    except UserError as error:
        one_line(error)


@pytest.mark.parametrize("seed", range(30))
def test_a_manifest_of_junk_is_an_error_with_a_code_on_the_device(bundle: Path, seed: int) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(broken_document(json.loads(path.read_text()), seed)))
    try:
        verify_bundle(bundle)
    except UserError:
        return  # what the host would send is whole; the device answers for its own reading of it
    read = Bundle(str(bundle))
    for ask in (read.golden, read.evaluation_images, lambda: read.model_path("fp32", "onnxruntime", "1.30")):
        try:
            ask()
        except AgentError as error:
            one_line(error)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "sub/x.onnx", "", ".", "..", "a\x00b", "x" * 5000])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, name: str) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0]["path"] = name
    manifest["hashes"][name] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError) as raised:
        verify_bundle(bundle)
    one_line(raised.value)


@pytest.mark.parametrize("name", ["fp32.onnx", "golden.npz", "eval.npy", "labels.txt", "manifest.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_file_of_a_bundle_that_is_no_file_is_refused(bundle: Path, name: str, kind: str) -> None:
    path = bundle / name
    path.unlink()
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UserError) as raised:
        verify_bundle(bundle)
    one_line(raised.value)


def test_arrays_that_are_pickles_or_bombs_are_not_opened(tmp_path: Path, trap: Path, bundle: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([Bomb(trap)], dtype=object), allow_pickle=True)
    with pytest.raises(AgentError, match="pickle"):
        read_images(str(path), (3, 8, 8))
    golden = bundle / "golden.npz"
    with zipfile.ZipFile(golden, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", b"\0" * (200 << 20))
    with pytest.raises(UserError) as raised:
        verify_bundle(bundle)
    one_line(raised.value)
    shutil.rmtree(bundle)


@pytest.mark.parametrize("name", ["golden.npz", "eval.npy", "manifest.json"])
def test_a_pipe_in_a_bundle_is_not_waited_for_on_the_device(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(AgentError, match=r"is no file: do not trust this bundle"):
        [ask() for ask in (Bundle(str(bundle)).golden, Bundle(str(bundle)).evaluation_images)]


def test_a_golden_archive_that_cannot_be_opened_is_an_error_with_a_code(bundle: Path) -> None:
    path, manifest = bundle / "golden.npz", json.loads((bundle / "manifest.json").read_text())
    path.write_bytes(flagged(path.read_bytes(), 8, 1))
    manifest["hashes"]["golden.npz"] = sha256_of(path)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AgentError, match=r"golden\.npz: not an archive of arrays \(.*encrypted"):
        Bundle(str(bundle)).golden()


@pytest.mark.parametrize("name", ["pipe.npy", "pipe.png"])
def test_a_pipe_is_no_image(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for read in (read_images, read_letterboxed):
        with pytest.raises(AgentError, match="no such file"):
            read(str(tmp_path / name), (3, 8, 8))
    boxes, none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    scene = Scene(1, tmp_path / name, (8, 8), boxes, none, np.zeros(0), boxes, none)
    with pytest.raises(UserError, match=r"cannot be read \(a pipe or a folder\)"):
        read_canvas(scene, (8, 8))


def test_an_array_whose_header_is_none_is_an_error_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)
    with pytest.raises(AgentError, match=r"x\.npy: "):
        read_images(str(tmp_path / "x.npy"), (3, 8, 8))


def test_a_pipe_is_no_model_and_no_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: a folder or a pipe: name an ONNX file"):
        cost(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: not a readable record \(a pipe or a device\)"):
        reproduce(tmp_path / "pipe", None, tmp_path / "work")


def test_what_we_write_ourselves_passes(net: torch.nn.Module, tmp_path: Path, bundle: Path) -> None:
    save_weights(tmp_path / "w.safetensors", net.state_dict())
    assert load_weights(build_model("resnet8", num_classes=10, in_channels=3), tmp_path / "w.safetensors")
    assert verify_bundle(bundle)["schema"] == "afpkd.bundle/1"
