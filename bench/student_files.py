"""Networks of the zoo as files of each precision, the shortest way: random weights, calibrated on noise.

For questions to NVIDIA's parser and builder, which do not depend on the weights. Nothing here is for use.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from afpkd.models import build_model
from export.to_onnx import onnx_from_model

SHAPE = (3, 32, 32)


def exported(arch: str, folder: Path) -> Path:
    """The network in fp32, 100 classes."""
    torch.manual_seed(0)
    model = build_model(arch, num_classes=100, in_channels=3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # a bias of zeros would be left out of the file
            torch.nn.init.normal_(parameter, std=0.1)
    path = folder / f"{arch}-fp32.onnx"
    onnx_from_model(model, torch.zeros(1, *SHAPE), path)
    return path


def halved(path: Path) -> Path:
    """The same graph in fp16: every float constant is cast, and so are input and output, which stay float32."""
    model = onnx.load(path)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    del graph.value_info[:]
    for node in graph.node:
        node.input[:] = ["half_input" if name == "input" else name for name in node.input]
        node.output[:] = ["half_logits" if name == "logits" else name for name in node.output]
    graph.node.insert(0, helper.make_node("Cast", ["input"], ["half_input"], name="cast_in", to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["half_logits"], ["logits"], name="cast_out", to=TensorProto.FLOAT))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path.with_name(path.name.replace("fp32", "fp16")))
    return path.with_name(path.name.replace("fp32", "fp16"))


def quantised(path: Path, **changes: bool) -> Path:
    """Explicit Q/DQ by ONNX Runtime's quantiser as NVIDIA's parser takes it; `changes` to its options break that."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no types
        def __init__(self) -> None:
            images = np.random.default_rng(0).normal(size=(4, 8, *SHAPE)).astype(np.float32)
            self.batches = iter([{"input": batch} for batch in images])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.batches, None)

    target = path.with_name(path.name.replace("fp32", "int8"))
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, **changes}
    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(
        path, target, Images(), quant_format=QuantFormat.QDQ, per_channel=True, extra_options=options, **kinds
    )
    return target
