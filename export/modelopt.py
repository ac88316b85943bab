"""NVIDIA Model-Optimizer behind the same door as ONNX Runtime's quantiser: an extra, asked for by name.

It works in a process of its own, for it replaces parts of ONNX Runtime's quantiser in the process that imports it: the
next calibration there fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from afpkd.errors import UserError
from export.calibration import Method

_METHODS: dict[Method, str] = {"minmax": "max", "entropy": "entropy"}
_INSTALL = "pip install nvidia-modelopt lief cppimport onnxconverter-common onnx-graphsurgeon onnxslim"

_CHILD = """
import sys
import numpy as np
from modelopt.onnx.quantization import quantize
source, inputs, target, name, method, remainder, *exclude = sys.argv[1:]
quantize(
    onnx_path=source,
    output_path=target,
    quantize_mode="int8",
    calibration_data={name: np.load(inputs)},
    calibration_method=method,
    calibration_eps=["cpu"],
    high_precision_dtype=remainder,
    nodes_to_exclude=exclude,
)
"""


def modelopt_int8(
    proto: onnx.ModelProto,
    inputs: NDArray[np.float32],
    exclude: Sequence[str],
    method: Method,
    remainder: Literal["fp32", "fp16"],
) -> onnx.ModelProto:
    """Quantise with Model-Optimizer on the CPU; it chooses the nodes, and writes opset 19 whatever it is given.

    exclude: names of nodes. UserError where it is not installed, where it fails, and for a method it does not have.
    """
    if method not in _METHODS:
        known = " and ".join(_METHODS)
        raise UserError(
            "E_EXPORT_SETTING", f"export.calibration: Model-Optimizer has {known}, not {method}: choose one of them"
        )
    with tempfile.TemporaryDirectory() as folder:
        source, images, target = (Path(folder) / name for name in ("float.onnx", "inputs.npy", "int8.onnx"))
        onnx.save(proto, source)
        np.save(images, inputs, allow_pickle=False)
        names = [re.escape(name) for name in exclude]
        words = [str(source), str(images), str(target), proto.graph.input[0].name, _METHODS[method], remainder, *names]
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *words], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            line = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError("E_PACKAGE", f"export.quantizer = 'modelopt': {line}: {_INSTALL}, or use 'onnxruntime'")
        return onnx.load(target)
