"""A training stage in several processes: torchrun, started by ourselves, and its failures as one line.

The stage's verb becomes the launcher; the processes are the same verb again with `WORKER_VARIABLE` in the environment.
They share every batch (`afpkd.distributed`); the first one alone speaks and writes. One that fails leaves the reason in
a file that torchrun names, and the launcher says it once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afpkd.errors import UserError
from afpkd.settings import TrainSettings, require_equal_parts
from pipeline.disk import explained
from pipeline.gpu_nodes import num_gpus
from pipeline.parent import PARENT_VARIABLE, WORKER_VARIABLE, die_with_parent
from pipeline.progress import StageProgress
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # torchrun's own choice
_NEXT = "run it again: it continues from its last checkpoint"


def is_worker() -> bool:
    """Whether a launcher started this process."""
    return WORKER_VARIABLE in os.environ


def require_processes(processes: int, recipe: Recipe, train_device: str) -> None:
    """UserError where a recipe's batches or this machine's GPUs do not allow so many; before anything starts."""
    if processes < 1:
        raise UserError("E_TRAIN_PROCESSES", f"TRAIN_PROCESSES={processes}: one process or more was expected")
    for section in recipe.trained:
        settings = getattr(recipe, section)
        if isinstance(settings, TrainSettings):
            require_equal_parts(settings.batch_size, processes, f"{section}.batch_size")
    if train_device != "cpu" and (there := num_gpus()):
        require_gpus(processes, there)


def require_gpus(processes: int, there: int) -> None:
    """UserError where there are fewer GPUs: each process takes one."""
    if processes > max(there, 1):
        raise UserError(
            "E_TRAIN_PROCESSES",
            f"TRAIN_PROCESSES={processes}: each takes a GPU, and here is {there}: "
            f"use TRAIN_PROCESSES={there}, or TRAIN_DEVICE=cpu",
        )


def in_processes(label: str, arguments: Sequence[str], *, processes: int, train_device: str, threads: int) -> None:
    """Run `afpkd ARGUMENTS` in so many processes, to its end. UserError where one failed; all others are ended then.

    threads: of torch, of all processes together; 0: the cores of this machine.
    """
    from torch import cuda
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if train_device != "cpu" and cuda.is_available():
        require_gpus(processes, cuda.device_count())
    each = max(1, (threads or len(os.sched_getaffinity(0))) // processes)
    with tempfile.TemporaryDirectory(prefix="afpkd-") as folder, _environment(each):
        own = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes)]
        own += ["--log-dir", folder, "--redirects", "1"]  # stdout, where a library may speak: ours holds one document
        more = ["--train-device", train_device, "--train-processes", str(processes), "--threads", str(each)]
        try:
            given = [*own, "--module", "pipeline", *arguments, *more]
            wanted = torchrun.parse_args(given)  # type: ignore[no-untyped-call]  # torch's
            StageProgress(label).end()  # the first of the processes speaks from here, as a job of its own
            torchrun.run(wanted)  # type: ignore[no-untyped-call]  # torch's
        except ChildFailedError as error:
            raise _first_of(label, dict(error.failures), processes) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + error.sigval) from None


def begin_worker() -> None:
    """End with the launcher; and without a word where it passes Ctrl-C on, since it speaks for all."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def worker_call(runs: Path) -> Iterator[None]:
    """Call one stage in one of the processes: what goes wrong is left for the launcher, which says it once."""
    try:
        yield
        StageProgress("").end()
    except Exception as fault:
        error = explained(fault, runs)
        left = {
            "message": error.message if isinstance(error, UserError) else repr(error),
            "code": error.code if isinstance(error, UserError) else None,
            "timestamp": int(time.time()),
            "traceback": "" if isinstance(error, UserError) else traceback.format_exc(),
        }
        Path(os.environ[_ERROR_FILE_VARIABLE]).write_text(json.dumps(left), encoding="utf-8")
        raise SystemExit(2) from None


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What torchrun and its processes find; torchrun's own warnings, and its handlers of signals, do not stay."""
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    os.environ |= {WORKER_VARIABLE: str(os.getpid()), PARENT_VARIABLE: str(os.getpid())}
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else torchrun says that it takes 1
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[WORKER_VARIABLE]
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _first_of(label: str, failures: dict[int, ProcessFailure], processes: int) -> UserError:
    """The error of the process that failed first; the others were ended for it, or missed it."""
    rank = min(failures, key=lambda rank: (_order(failures[rank]), failures[rank].timestamp, rank))
    failure, who = failures[rank], f"{label}: training process {rank + 1} of {processes}"
    left: dict[str, Any] = failure.error_file_data
    if left.get("code"):
        return UserError(left["code"], failure.message)
    if "traceback" in left:
        sys.stderr.write(left["traceback"])  # a fault of ours: the log keeps it
        how = f"failed: {failure.message}"
    elif failure.exitcode < 0:
        memory = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
        how = f"was ended by {failure.signal_name()}{memory}: {_NEXT}"
    else:
        how = f"ended with exit code {failure.exitcode}: {_NEXT}"
    return UserError("E_TRAIN_STOPPED", f"{who} {how}")


def _order(failure: ProcessFailure) -> int:
    """What is the cause rather than its consequence: a process whose peer has gone fails, aborts or is terminated."""
    if failure.error_file_data.get("code"):
        return 0
    if failure.exitcode < 0 and -failure.exitcode not in (signal.SIGTERM, signal.SIGABRT):
        return 1
    return 3 if failure.exitcode == -signal.SIGTERM else 2
