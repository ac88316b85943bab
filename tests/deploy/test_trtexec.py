"""NVIDIA's tool as a second opinion: a program in its place says what it was told, and writes the real one's file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.agent import trtexec
from deploy.agent.trtexec import second_opinion
from deploy.presets import find_preset
from deploy.rows import rows_of
from deploy.runs import Run
from tests.deploy.fakes import Install, load
from tests.deploy.test_provoked import ABOUT

PROGRAM = """#!/bin/sh
for word in "$@"; do
  echo "$word" >> "$0.told"
  case $word in --exportTimes=*) out=${word#*=} ;; esac
done
printf '%s' '[' > "$out"
for n in 1 2 3 4 5 6 7 8 9; do
  printf '{"startComputeMs": %s, "h2dMs": 0, "computeMs": 0.%s, "latencyMs": 9}, ' $n $n >> "$out"
done
printf '%s' '{"computeMs": 0.5}]' >> "$out"
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin" / "trtexec"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


@pytest.mark.parametrize(
    ("version", "shape", "dla_core", "switches"),
    [
        ("8.5.2", None, None, ["--noDataTransfers", "--useSpinWait"]),
        ("10.3.0.30", "input:1x3x4x4", None, ["--noDataTransfers", "--useSpinWait", "--shapes=input:1x3x4x4"]),
        ("11.4.1", "input:4x3x4x4", 1, ["--noCudaGraph", "--shapes=input:4x3x4x4", "--useDLACore=1"]),
    ],
)
def test_every_switch_is_set_for_each_release(
    version: str, shape: str | None, dla_core: int | None, switches: list[str], program: Path, tmp_path: Path
) -> None:
    found = second_opinion(tmp_path / "x.engine", version, dla_core, shape)
    assert found == {"program": str(program), "n": 10, "gpu_p50_ms": 0.5, "switches": found and found["switches"]}
    told = Path(f"{program}.told").read_text().split()
    assert told[0] == f"--loadEngine={tmp_path}/x.engine"
    assert set(told[2:]) == {*switches, "--duration=3", "--warmUp=1000"} == set(found["switches"])


def test_where_there_is_none_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "_PLACES", (str(tmp_path / "none"),))
    assert second_opinion(tmp_path / "x.engine", "10.3", None, None) is None


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'no such engine' >&2; exit 3", "exit code 3: no such engine"),
        ("exit 0", "FileNotFoundError"),
        ('for w in "$@"; do case $w in --exportTimes=*) echo "{}" > ${w#*=};; esac; done', "StatisticsError"),
        ('for w in "$@"; do case $w in --exportTimes=*) echo "[1]" > ${w#*=};; esac; done', "TypeError"),
    ],
)
def test_its_failure_is_told_and_harms_nothing(script: str, told: str, program: Path, tmp_path: Path) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    found = second_opinion(tmp_path / "x.engine", "10.3", None, None)
    assert found
    assert found["failed"].startswith(told)


def test_the_runtime_asks_about_its_own_engine_and_batch(
    program: Path, install: Install, onnx_path: Path, cache: Path
) -> None:
    install("10.3")
    found = load(onnx_path, cache, batch=4).cross_check(2)
    assert found["gpu_p50_ms"] == 0.5
    assert "--shapes=input:2x3x4x4" in found["switches"]
    (engine,) = cache.rglob("*.engine")
    assert f"--loadEngine={engine}" in Path(f"{program}.told").read_text().split()


@pytest.mark.parametrize(
    ("ours_ns", "told"), [(500_000, None), (480_000, None), (400_000, "cross-check: trtexec's GPU time is +25.0 %")]
)
def test_a_row_warns_where_the_two_differ(ours_ns: int, told: str | None) -> None:
    """5 % is the bound (protocol 4.16)."""
    preset = dataclasses.replace(find_preset("quick"), min_count=1)
    checks = {"before": {"ok": True}, "after": {"ok": True}}
    answer: dict[str, Any] = {
        "timing": {"num_inputs": 64, "foreign_cpus": 0.0},
        "state": {"rate_hz": None, "names": [], "cpu_s": None, "windows_ns": {"timed": [0, 10**9]}},
        "machine": {"num_cpus": 2},
        "golden": checks,
        "runtime": {"name": "fake", "threads": None},
        "mode": "default",
        "clocks": "as-is",
        "cross_check": {"gpu_p50_ms": 0.5},
    }
    arrays = {"samples_ns": np.full(200, 600_000), "gpu_ns": np.full(200, ours_ns)}
    row = rows_of(ABOUT, [Run(preset, "as-is", json.loads(json.dumps(answer)), arrays)], [])[0]
    found = [reason for reason in row["reasons"] if reason.startswith("cross-check")]
    assert found == ([] if told is None else [f"{told} from ours"])
