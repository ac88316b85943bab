"""ONNX files, bundles and arrays of a stranger: nothing is run or loaded in part, and one line says why."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

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
from tests.export.test_sealed_arrays import flagged, replaced
from tests.hostile.mutations import Bomb, broken_bytes, broken_document, one_line

SIDE = 32


@pytest.fixture(name="net", scope="module")
def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", num_classes=10, in_channels=3).eval()


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
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("images.npy", "logits.npy"):
            archive.writestr(name, b"\0" * (5 << 20))  # five kilobytes each, which the manifest allows
    replaced(bundle, "golden.npz", (tmp_path / "bomb").read_bytes())  # and a manifest that agrees
    with pytest.raises(UserError, match="compressed") as raised:
        verify_bundle(bundle)
    one_line(raised.value)


def test_there_are_hundreds_of_hostile_inputs(request: pytest.FixtureRequest) -> None:
    """Where all files of this folder were collected, as by `make test`, which prints the number."""
    collected = [item for item in request.session.items if item.path.parent == Path(__file__).parent]
    whole = {item.path for item in collected} == {*Path(__file__).parent.glob("test_*.py")}
    assert not whole or len(collected) >= 200


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
    with pytest.raises(UserError, match=r"cannot be read \(no such file\)"):
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


def test_what_we_write_ourselves_passes(bundle: Path) -> None:
    assert verify_bundle(bundle)["schema"] == "afpkd.bundle/1"
