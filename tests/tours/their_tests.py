"""The test that each addition brings, compared with something independent. They run in the copy of the tree alone."""

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from afpkd.data import DATASETS
from afpkd.distillers import build_distiller
from afpkd.errors import UserError
from afpkd.models import build_model, num_parameters, probe_shapes
from afpkd.models.outputs import Outputs, Shapes
from deploy.agent import runtimes


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_hint_is_its_equation_at_the_middle_level(beta: float) -> None:
    torch.manual_seed(0)
    shapes = [Shapes(channels, [(8, 8), (4, 4), (2, 2)], 4, 5) for channels in ([2, 3, 4], [5, 6, 7])]
    maps = [[torch.randn(2, c, *s) for c, s in zip(each.channels, each.sizes, strict=True)] for each in shapes]
    hint = build_distiller("hint", *shapes, beta=beta, warm_up=0.0).eval()
    ours, theirs = (
        Outputs(torch.zeros(2, 5), each, torch.zeros(2, 4), each[-1], torch.nn.Linear(4, 5)) for each in maps
    )
    (weight,) = (w.detach().double().numpy() for w in hint.parameters() if w.dim() == 4)
    adapted = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], maps[0][1]) / np.sqrt(1 + 1e-5)  # a new BatchNorm's
    expected = beta * np.square(adapted - maps[1][1].numpy()).mean() / 2
    assert float(hint(ours, theirs, None, 1.0)["hint"].detach()) == pytest.approx(expected, rel=1e-5)


def test_the_small_cnn_has_the_layers_that_it_says() -> None:
    model = build_model("small-cnn", num_classes=10, in_channels=1)
    layers = [9 * 1 * 16 + 2 * 16, 9 * 16 * 32 + 2 * 32, 9 * 32 * 64 + 2 * 64, 64 * 10 + 10]
    assert num_parameters(model) == sum(layers)
    assert probe_shapes(model, in_channels=1, image_size=(16, 16)).sizes == [(16, 16), (8, 8), (4, 4)]


def test_usps_reads_what_was_written_and_refuses_what_is_none(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256))
    rows = [f"{digit}.0000 {' '.join(f'{v / 127.5 - 1:.4f}' for v in row)}" for digit, row in enumerate(pixels)]
    (tmp_path / "usps").mkdir()
    for name in ("train", "test"):
        (tmp_path / "usps" / f"zip.{name}.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    data = DATASETS["usps"].load(tmp_path)
    assert data.train.labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(data.test.images.reshape(3, 256), pixels)
    (tmp_path / "usps" / "zip.test.gz").write_bytes(gzip.compress(b"7 1 1"))
    with pytest.raises(UserError, match=r"zip\.test\.gz: a class and 256 values a line were expected"):
        DATASETS["usps"].load(tmp_path)


def test_the_reference_runtime_computes_the_file(tmp_path: Path) -> None:
    weight, images = np.random.default_rng(0).standard_normal((2, 5, 5)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 5]) for name in ("x", "y")]
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    runtime = runtimes.load("onnx", runtimes.Loading(tmp_path / "m.onnx", "x", "y", threads=1))
    np.testing.assert_allclose(runtime.infer(images), images.astype(np.float64) @ weight, rtol=1e-5, atol=1e-5)
    assert runtimes.files_of("onnx") == "onnxruntime"
