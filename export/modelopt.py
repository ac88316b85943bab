"""NVIDIA Model-Optimizer behind the same door as ONNX Runtime's quantiser: an extra, imported when asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from afpkd.record import UserError
from export.calibration import Method

_METHODS: dict[Method, str] = {"minmax": "max", "entropy": "entropy"}


def modelopt_int8(
    proto: onnx.ModelProto,
    inputs: NDArray[np.float32],
    exclude: Sequence[str],
    method: Method,
    remainder: Literal["fp32", "fp16"],
) -> onnx.ModelProto:
    """Quantise with Model-Optimizer on the CPU; it chooses the nodes, and writes opset 19 whatever it is given.

    exclude: names of nodes. UserError where it is not installed, and for a method it does not have.
    """
    if method not in _METHODS:
        known = " and ".join(_METHODS)
        raise UserError(f"export.calibration: Model-Optimizer has {known}, not {method}: choose one of them")
    # It configures logging when it is imported, and says that it finds no GPU; its errors are raised all the same.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        quantize = _library()
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(proto, source)
        disabled = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            quantize(
                onnx_path=str(source),
                output_path=str(target),
                quantize_mode="int8",
                calibration_data={proto.graph.input[0].name: inputs},
                calibration_method=_METHODS[method],
                calibration_eps=["cpu"],
                high_precision_dtype=remainder,
                nodes_to_exclude=[re.escape(name) for name in exclude],
            )
        finally:
            logging.disable(disabled)
        return onnx.load(target)


def _library() -> Callable[..., Any]:
    try:
        quantize: Callable[..., Any] = importlib.import_module("modelopt.onnx.quantization").quantize
    except ImportError as error:
        hint = "pip install nvidia-modelopt lief cppimport onnxconverter-common onnx-graphsurgeon onnxslim"
        raise UserError(f"export.quantizer = 'modelopt': {error}: {hint}, or use 'onnxruntime'") from None
    return quantize
