"""A run's processes end with it. Standard library only: every job of a graph imports this first."""

from __future__ import annotations

import ctypes
import os
import signal

PARENT_VARIABLE = "AFPKD_PARENT"
"""Environment variable: the process that a child must not outlive."""

WORKER_VARIABLE = "AFPKD_TRAIN_PROCESS"
"""Environment variable: this is one of the processes that the one it names has started (`pipeline.processes`)."""


def die_with_parent(*, on_a_node: bool = False) -> None:
    """Ask the kernel to end this process when its parent ends, even by SIGKILL: no stage outlives its run.

    SIGKILL, since Snakemake answers SIGTERM by waiting for its jobs; every stage can be killed at any moment. A job
    `on_a_node` of a cluster is the cluster's: its stage ends with it, and it with what the cluster started.
    """
    if not on_a_node:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        parent = os.environ.get(PARENT_VARIABLE)
        if parent is not None and int(parent) != os.getppid():  # it ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGKILL)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
