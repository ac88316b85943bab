"""`afpkd cost`: numbers by hand, mistakes in one line, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from afpkd.errors import UserError
from pipeline.cli import app

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A 3x3 convolution of 2 channels to 5, and a Relu, on images of any size."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    weight = numpy_helper.from_array(np.full((5, 2, 3, 3), 0.5, np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, "h", "w_"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, "h", "w_"])
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def cost(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["cost", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_numbers_by_hand(model: Path) -> None:
    found = json.loads(cost(model, "--input", "2x4x6", "--json"))
    assert (found["num_params"], found["macs"], found["by_layer"]) == (90, 24 * 5 * 18, {"conv": 24 * 5 * 18})
    assert found["unsupported_ops"] == {"Relu": 1}
    assert found["activations"]["peak_bytes"] == 4 * 24 * (5 + 5)
    assert found["size_bytes"] == model.stat().st_size
    text = cost(model, "--input", "2,4,6")
    assert "parameters   90" in text
    assert "MACs         2,160 (FLOPs/2) for one image of 2x4x6" in text
    assert "activations  960 B at relu at most" in text
    assert "not counted  1 Relu" in text
    assert "100.0 %  conv" in text


def test_weights_beside_the_model_count_to_its_size_and_are_not_read(model: Path) -> None:
    proto = onnx.load(model)
    beside = model.with_name("big.onnx")
    onnx.save(proto, beside, save_as_external_data=True, location="big.data", size_threshold=0)
    found = json.loads(cost(beside, "--input", "2x4x6", "--json"))
    assert found["size_bytes"] == beside.stat().st_size + model.with_name("big.data").stat().st_size
    assert found["num_params"] == 90
    model.with_name("big.data").unlink()
    with pytest.raises(UserError, match=r"big\.data.*missing"):
        cost(beside, "--input", "2x4x6")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "its input is 2x?x? .*--input"),
        (["--input", "3x4x6"], "its input is 2x?x?"),
        (["--input", "2x4"], "its input is 2x?x?"),
        (["--input", "large"], "channels, height and width were expected"),
        (["--input", "2x0x6"], "its input is 2x?x?"),
    ],
)
def test_a_wrong_size_is_told(model: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        cost(model, *arguments)


def test_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"no protobuf at all")
    for name, words in (("junk.onnx", "not a valid ONNX file"), ("none.onnx", "No such file")):
        with pytest.raises(UserError, match=words) as caught:
            cost(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_it_needs_no_torch(model: Path) -> None:
    code = "import sys; sys.argv[0] = 'afpkd'; from pipeline.cli import app; app(standalone_mode=False)\n"
    code += "sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "cost", str(model), "--input", "2x4x6"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
