"""NVIDIA's own tool as a second opinion on the GPU's time (measuring protocol 4.16): `trtexec`, where the board has it.

What it measures by itself changed with TensorRT 11 (no transfers, spinning, a CUDA graph), so every switch is set to
what our own clock does. **Never run by us**: its switches and its file are those of NVIDIA's sources.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    Json = dict[str, Any]

_PLACES = ("/usr/src/tensorrt/bin/trtexec",)
"""Where JetPack and NVIDIA's packages put it, which is on no PATH."""

_SECONDS = 3
_MOST_SECONDS = 120
_SWITCHES_CHANGED = 11


def second_opinion(plan: Path, version: str, dla_core: int | None, shape: str | None) -> Json | None:
    """Let trtexec time the engine in `plan`: `gpu_p50_ms` over `n` calls, its `switches`; or `failed` and why.

    None where there is no trtexec. `version`: TensorRT's; `shape`: such as `input:1x3x32x32` of an engine that takes
    several, else None.
    """
    program = shutil.which("trtexec") or next((place for place in _PLACES if Path(place).is_file()), None)
    if program is None:
        return None
    switches = _switches(version, shape, dla_core)
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        command = [program, f"--loadEngine={plan}", f"--exportTimes={times}", *switches]
        try:
            subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_MOST_SECONDS, check=True)
            found = [float(call["computeMs"]) for call in json.loads(times.read_text(encoding="utf-8"))]
            return {"program": program, "switches": switches, "n": len(found), "gpu_p50_ms": median(found)}
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or error.stdout).strip().splitlines()
            failed = f"exit code {error.returncode}" + (f": {lines[-1]}" if lines else "")
        except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
            failed = f"{type(error).__name__}: {error}"
    return {"program": program, "switches": switches, "failed": failed}


def _switches(version: str, shape: str | None, dla_core: int | None) -> Sequence[str]:
    """One call after the other on one stream, inputs on the GPU already, the host spinning, no CUDA graph."""
    newer = int(version.partition(".")[0]) >= _SWITCHES_CHANGED
    return [
        *(["--noCudaGraph"] if newer else ["--noDataTransfers", "--useSpinWait"]),
        f"--duration={_SECONDS}",
        "--warmUp=1000",  # milliseconds
        *([f"--shapes={shape}"] if shape else []),
        *([f"--useDLACore={dla_core}"] if dla_core is not None else []),
    ]
