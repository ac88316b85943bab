"""the whole zoo x fp32, fp16, int8: does NVIDIA's TensorRT-RTX parse and build it, and in which types?

`make bench ARGS=rtx_builds` (minutes, no GPU): one row a network and precision in results/rtx_builds.jsonl.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import onnx

from afpkd.models import MODELS
from afpkd.record import Json, provenance
from bench import rows
from bench.student_files import exported, halved, quantised
from deploy.build_check import build_check

NAME = "rtx_builds"


def main() -> None:
    """Build what has no row yet; print the table."""
    done = {row["arch"] for row in rows.read(NAME)}
    for arch in (arch for arch in MODELS if arch not in done):
        rows.append(NAME, list(rows_of(arch)))
    sys.stdout.write(table(rows.read(NAME)))


def rows_of(arch: str) -> Iterator[Json]:
    """The rows of one network."""
    with tempfile.TemporaryDirectory() as folder:
        fp32 = exported(arch, Path(folder))
        for precision, path in (("fp32", fp32), ("fp16", halved(fp32)), ("int8", quantised(fp32))):
            report = build_check(path, precision)
            yield {
                "arch": arch,
                "precision": precision,
                **{key: report[key] for key in ("status", "reason", "compute_capabilities", "build_seconds")},
                "engine_bytes": report["engine_bytes"],
                "file_bytes": path.stat().st_size,
                "layers": report["layer_types"] and report["layer_types"]["of"],
                "operators": dict(sorted(Counter(node.op_type for node in onnx.load(path).graph.node).items())),
                "dla_not_native": report["dla_not_native"],
                "tensorrt": report["tensorrt"] and " ".join(report["tensorrt"].values()),
                "commit": provenance()["git_commit"],
                "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }


def table(found: list[Json]) -> str:
    """Markdown: a network a line; engine sizes for three GPUs in one engine, MB, and what a DLA would hand back."""
    by_arch: dict[str, dict[str, Json]] = {}
    for row in found:
        by_arch.setdefault(row["arch"], {})[row["precision"]] = row
    lines = ["| network | fp32 | fp16 | int8 | fp32 operators a DLA leaves to the GPU |", "|---|---:|---:|---:|---|"]
    for arch, of in by_arch.items():
        cells = [_cell(of[precision]) for precision in ("fp32", "fp16", "int8")]
        foreign = ", ".join(f"{name} ({count})" for name, count in of["fp32"]["dla_not_native"].items()) or "none"
        lines.append(f"| `{arch}` | {' | '.join(cells)} | {foreign} |")
    return "\n".join(lines) + "\n"


def _cell(row: Json) -> str:
    return f"{row['engine_bytes'] / 1e6:.1f}" if row["status"] == "ok" else f"{row['status']}: {row['reason']}"


if __name__ == "__main__":
    main()
