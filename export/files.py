"""Which files a bundle holds for the precisions asked for, what each runs on, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from afpkd.errors import UserError
from afpkd.record import Json
from export.activations import activation_memory
from export.half import LEGACY_OPSET, OPSET_OF_HALF_QUANTIZATION, half_from_float, overflow
from export.quantize import Int8, Quantized, quantized

PRECISIONS = ("fp32", "fp16", "int8")

GraphOf = Callable[[int], onnx.ModelProto]
"""opset -> the network as a float32 graph of that opset; UserError where it cannot be had."""


class Runs(NamedTuple):
    """A runtime that can load a file; versions are inclusive bounds ("8.6" includes 8.6.1), None is open."""

    runtime: str
    min_version: str | None
    max_version: str | None = None


class Planned(NamedTuple):
    """A file to make."""

    name: str
    precision: str
    opset: int
    runs: tuple[Runs, ...]
    half: bool = False
    """Whether what is not int8 in it is float16."""

    @property
    def as_written(self) -> bool:
        """Checked without graph optimisations (`verify.onnx_forward` says why)."""
        return self.half and self.precision == "int8"


# ONNX IR 10, which torch writes, is read from ONNX Runtime 1.18 on; opset 22 and 23 from 1.20 and 1.23 on (its
# compatibility table). NVIDIA's parser: opset 17 up to TensorRT 8.6, 20 in 10.0 to 10.3, 24 in 10.15 (its
# operators.md).
_LEGACY = (Runs("tensorrt", "8.5", "8.6"),)


def _runs(opset: int) -> tuple[Runs, ...]:
    return Runs("onnxruntime", _onnxruntime_of(opset)), _tensorrt(opset)


def _onnxruntime_of(opset: int) -> str:
    return {22: "1.20", 23: "1.23"}.get(opset, "1.18")


def _tensorrt(opset: int) -> Runs:
    """TensorRT-RTX, which counts its versions anew, takes what the newest TensorRT takes."""
    return Runs("tensorrt", "10.0" if opset <= 20 else "10.15")


def planned_files(
    precisions: Sequence[str], opset: int, *, legacy: bool = False, quantizer: str = "onnxruntime"
) -> list[Planned]:
    """List the files for these precisions, newest runtimes first; UserError for what cannot be had together."""
    if legacy and quantizer == "modelopt" and "int8" in precisions:
        raise UserError(
            "E_EXPORT_SETTING",
            "export.legacy with export.quantizer = 'modelopt': it writes opset 19 at least, TensorRT 8.5 and 8.6 read "
            "17 at most: use quantizer = 'onnxruntime' or leave int8 or legacy out",
        )
    ours = max(opset, OPSET_OF_HALF_QUANTIZATION) if quantizer == "modelopt" else opset  # what int8 is written in
    half = max(opset, OPSET_OF_HALF_QUANTIZATION)
    files = {
        "fp32": [Planned("fp32.onnx", "fp32", opset, _runs(opset))],
        "fp16": [Planned("fp16.onnx", "fp16", opset, _runs(opset), half=True)],
        "int8": [
            Planned("int8.onnx", "int8", ours, _runs(ours)[:1]),
            Planned("int8-tensorrt.onnx", "int8", half, (_tensorrt(half),), half=True),
        ],
    }
    modern = [file for precision in precisions for file in files[precision]]
    old = [
        Planned(f"{precision}-legacy.onnx", precision, LEGACY_OPSET, _LEGACY, half=precision == "fp16")
        for precision in precisions
    ]
    return modern + (old if legacy else [])


class Maker:
    """Makes planned files of one network; each graph is exported and calibrated once, whatever is made of it.

    inputs: calibration images, preprocessed, float32 N, C, H, W; None where no int8 is wanted.
    """

    def __init__(self, graph_of: GraphOf, opset: int, inputs: NDArray[np.float32] | None, settings: Int8) -> None:
        self._opset, self._inputs, self._settings = opset, inputs, settings
        self._graph = cache(graph_of)
        self._quantized = cache(self._quantize)

    def graph(self, file: Planned) -> onnx.ModelProto:
        """Make a file's graph."""
        source = LEGACY_OPSET if file.opset == LEGACY_OPSET else self._opset
        if file.precision == "fp32":
            return self._graph(source)
        if file.precision == "fp16":
            return half_from_float(self._graph(source))
        found = self._quantized(source)
        if file.runs == _LEGACY:
            return found.paired()
        return found.half(file.opset) if file.half else found.full

    def activations(self, image_shape: Sequence[int]) -> Json:
        """Memory of the values between the float32 graph's operators, for one image (C, H, W)."""
        return activation_memory(self._graph(self._opset), image_shape)

    def overflow(self, images: NDArray[np.float32]) -> str | None:
        """What exceeds float16 where the network runs on these images, in words; None where nothing does."""
        return overflow(self._graph(self._opset), images)

    def sensitivity(self) -> list[Json]:
        """What each layer costs in int8, the worst first; empty where none was quantised."""
        return self._quantized(self._opset).sensitivity() if self._inputs is not None else []

    def _quantize(self, opset: int) -> Quantized:
        assert self._inputs is not None, "int8 is planned with calibration images"
        return quantized(self._graph(opset), self._inputs, self._settings)
