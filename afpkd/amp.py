"""In which precision a training's networks run forward."""

from __future__ import annotations

import torch

from afpkd.settings import TrainSettings


def amp_dtype(device: torch.device, settings: TrainSettings) -> torch.dtype | None:
    """bfloat16 or float16 where the settings and the device have mixed precision; None: all of it in float32."""
    if device.type == "cuda" and settings.amp != "never":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and settings.amp == "gpu+cpu" and _cpu_computes_in_bfloat16():
        return torch.bfloat16
    return None


def _cpu_computes_in_bfloat16() -> bool:
    """True where this CPU multiplies in bf16; elsewhere it is emulated, slower than fp32."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))
