"""`afpkd doctor`: can the main job run here, and what would mend what cannot?"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli_options import JsonOption, RunsOption

if TYPE_CHECKING:
    from pipeline.doctor import Finding

_MARKS = {"ok": ("ok", "32"), "warn": ("WARN", "33"), "bad": ("FAIL", "31")}


def doctor(
    runs: RunsOption = Path("runs"),
    probe: Annotated[bool, typer.Option("--probe", help="Reach the devices of devices.toml, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at Python, packages, GPU, ssh, disk, memory, data, devices. Exit 0: the main job can run; 2: it cannot."""
    from pipeline.doctor import can_run, diagnose
    from pipeline.screen import waiting

    with waiting("doctor", "looking at this machine"):
        findings = diagnose(runs, probe=probe)
    healthy = can_run(findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        sys.stdout.write(json.dumps({"can_run": healthy, "findings": rows}, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(line for finding in findings for line in _lines(finding)))
        can, cannot = "can run: make distill export profile", "cannot run: mend each FAIL first"
        sys.stdout.write(f"\n\nthe main job {can if healthy else cannot}\n")
    if not healthy:
        raise SystemExit(2)


def _lines(finding: Finding) -> list[str]:
    mark, colour = _MARKS[finding.level]
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    shown = f"\x1b[{colour}m{mark:<5}\x1b[0m" if coloured else f"{mark:<5}"
    return [f"{shown} {finding.topic:<9} {finding.found}", *([f"{'':<15} -> {finding.mend}"] if finding.mend else [])]
