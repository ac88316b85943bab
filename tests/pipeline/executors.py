"""Snakemake's executors for clusters, which `make setup` leaves out: in a folder (AFPKD_CLUSTER), or in .venv."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


def with_executors() -> dict[str, str]:
    """The environment of a run that finds them; skips where there are none."""
    folder = os.environ.get("AFPKD_CLUSTER")
    if folder is None and find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("no executors: make setup-cluster")
    paths = [path for path in (folder, os.environ.get("PYTHONPATH")) if path]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
