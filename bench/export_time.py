"""How long `make export` takes for one role of a run, and how much memory: `python -m bench.export_time RUN/student`.

Each measurement is a fresh process. Seconds are wall and CPU, imports included; running the whole test set is part of
them and named apart, for a large set outweighs all else.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from afpkd.record import Json, provenance
from bench.command import run
from bench.rows import append

REPEATS = 3


def main(arguments: list[str]) -> None:
    """Measure a role `REPEATS` times, append rows to results/export_time.jsonl, print them."""
    if arguments[:1] == ["--once"]:
        sys.stdout.write(json.dumps(_once(Path(arguments[1]))) + "\n")
        return
    for folder in arguments:
        rows = [_measured(folder) for _ in range(REPEATS)]
        append("export_time", rows)
        sys.stdout.write(table(rows))


def table(rows: list[Json]) -> str:
    """Markdown: a run a line."""
    titles = ("network", "files", "seconds", "CPU seconds", "of these test set", "peak memory")
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    for row in rows:
        lines.append(
            f"| {row['arch']} | {row['files']} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} "
            f"| {row['test_seconds']:.1f} | {row['peak_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines) + "\n"


def _measured(folder: str) -> Json:
    """One export in a process of its own, which inherits no peak of this one's."""
    started, command = time.perf_counter(), [sys.executable, "-m", "bench.export_time", "--once", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: Json = json.loads(done.stdout.splitlines()[-1])
    return {**row, "seconds": time.perf_counter() - started, "loadavg": os.getloadavg()[0], **provenance()}


def _once(folder: Path) -> Json:
    from export import build
    from export.passes import outputs_of
    from pipeline.stages import export_bundle
    from pipeline.workspace import open_run

    spent = 0.0

    def clocked(*arguments: object) -> object:
        nonlocal spent
        started = time.perf_counter()
        found = outputs_of(*arguments)  # type: ignore[arg-type]  # passed on as they came
        spent += time.perf_counter() - started
        return found

    vars(build)["outputs_of"] = clocked
    manifest = export_bundle(open_run(folder.parent.name, folder.parent.parent), folder.name)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "arch": manifest["arch"],
        "files": len(manifest["verification"]),
        "num_images": manifest["evaluation"]["num"],
        "test_seconds": spent,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": peak_bytes() or used.ru_maxrss * 1024,
    }


def peak_bytes() -> int | None:
    """VmHWM, which counts from this program's start: `ru_maxrss` holds the parent's peak too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    run(main)
