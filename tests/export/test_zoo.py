"""Every network of the zoo becomes every file: valid, computing what torch computes at what torch says it costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from afpkd.models import build_model
from export.cost import macs_of
from export.files import Maker, planned_files
from export.graph_cost import graph_cost
from export.inference import logits_only
from export.quantize import Int8, layers
from export.to_onnx import graph_from_model, save_graph
from export.verify import compare, onnx_forward

REPRESENTATIVE = ("resnet8", "wrn-16-2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2")  # a family each


@pytest.mark.slow
@pytest.mark.parametrize("arch", REPRESENTATIVE)
def test_every_file_of_a_family_computes_what_torch_computes(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(arch, num_classes=10, in_channels=3)
    for _ in range(5):  # BatchNorm's statistics are those of the images that follow
        model(torch.randn(32, 3, 32, 32))
    images: NDArray[np.float32] = np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        reference = logits_only(model)(torch.from_numpy(images)).numpy()
    example = torch.zeros(1, 3, 32, 32)
    # minmax: the values of untrained networks have no tails to clip
    maker = Maker(lambda opset: graph_from_model(model, example, opset=opset), 18, images, Int8(method="minmax"))
    least = {"fp32": 90.0, "fp16": 45.0, "int8": 15.0}
    for file in planned_files(("fp32", "fp16", "int8"), 18, legacy=True):
        save_graph(maker.graph(file), tmp_path / file.name, opset=file.opset)
        assert {found.version for found in onnx.load(tmp_path / file.name).opset_import} == {file.opset}
        logits = onnx_forward(tmp_path / file.name, as_written=file.as_written)(images)
        found = compare(reference, logits)
        assert found["sqnr_db"] is None or found["sqnr_db"] > least[file.precision], file.name
        if file.precision == "int8":
            quantized = onnx.load(tmp_path / file.name).graph
            weights = {tensor.name for tensor in quantized.initializer if tensor.data_type == onnx.TensorProto.INT8}
            assert len(weights) >= len(layers(maker.graph(planned_files(("fp32",), 18)[0])))
    costs, wanted = graph_cost(onnx.load(tmp_path / "fp32.onnx"), (3, 32, 32)), macs_of(model, example)
    assert costs["macs"] == wanted["macs"] == sum(costs["by_layer"].values())
    assert set(costs) == set(wanted)
    assert "Relu" in costs["unsupported_ops"] or "Clip" in costs["unsupported_ops"]
