"""The sections of a recipe that train nothing: which files travel, and how they are measured."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic.dataclasses import dataclass

from afpkd.settings import require_between

STRICT = pydantic.ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Export:
    """Which files travel."""

    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
    """Precisions to write."""
    opset: int = 18
    """ONNX operator set. 18: at 19 and above an Arm ONNX Runtime fault breaks fp16 AveragePool."""
    legacy: bool = False
    """Write opset-17 files for TensorRT 8.5 and 8.6 (JetPack 5) as well."""
    max_drop: float = 1.0
    """Points of top-1 a file may lose against float32: beyond, it is listed as over budget."""
    quantizer: Literal["onnxruntime", "modelopt"] = "onnxruntime"
    """What places int8: ONNX Runtime's quantiser, or NVIDIA Model-Optimizer (installed apart)."""
    calibration: Literal["mse", "percentile", "minmax", "entropy"] = "mse"
    """How the range of an int8 tensor is chosen: least squared error, all values but 0.005 % at each end, all, least
    divergence."""
    calibration_images: int = 512
    """Training images that calibrate int8, drawn with the recipe's seed."""
    int8_exclude: tuple[str, ...] = ()
    """Layers that stay float in int8 files: `sensitivity` in the manifest names them; the teacher's or student's alone,
    too."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise ValueError(f"precisions: each at most once and at least one, got {self.precisions}")
        if not 18 <= self.opset <= 23:
            hint = "; legacy = true writes opset 17 beside it" if self.opset == 17 else ""
            raise ValueError(f"opset: 18 to 23 can be exported, got {self.opset}{hint}")
        require_between("max_drop", self.max_drop, 0, 100)
        if self.calibration_images < 512:
            raise ValueError(f"calibration_images: 512 at least, got {self.calibration_images}")
        if self.int8_exclude and "int8" not in self.precisions:
            raise ValueError("int8_exclude: precisions has no int8: leave it out")
        if self.quantizer == "modelopt" and "int8" in self.precisions:
            if self.legacy:
                raise ValueError("legacy: modelopt's int8 has opset 19 at least, TensorRT 8.5 and 8.6 read 17 at most")
            if self.calibration not in ("minmax", "entropy"):
                raise ValueError("calibration: modelopt has minmax and entropy: name one")

    @property
    def opsets(self) -> tuple[int, ...]:
        """All that files are written in."""
        return (self.opset, 17) if self.legacy else (self.opset,)

    @property
    def half(self) -> bool:
        """Whether float16 is in any of them: what is not int8 in a file for TensorRT is."""
        return set(self.precisions) != {"fp32"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Profile:
    """How latency is measured."""

    preset: Literal["quick", "standard", "mlperf"] = "standard"
    """quick: 5 s and 200 samples (p99 from 662 on); standard: 30 s and 2,010; mlperf: 600 s and 24,576."""
    threads: int = 0
    """CPU threads of the runtime; 0 = the runtime's default."""
    scenarios: tuple[Literal["single_stream", "periodic", "offline"], ...] = ("single_stream",)
    """single_stream: one call after the other, always; periodic: 30 and 60 frames a second; offline: batches to 32."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.threads < 0:
            raise ValueError(f"threads: must be 0 (the runtime's default) or more, got {self.threads}")
        if "single_stream" not in self.scenarios or len(set(self.scenarios)) != len(self.scenarios):
            raise ValueError(f"scenarios: single_stream and each other at most once, got {list(self.scenarios)}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Expected:
    """A published number."""

    top1: float
    """Percent."""
    source: str
    """Who says so."""
