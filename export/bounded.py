"""A stranger's graph is run with a limit of time: it may hold loops that never end."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Timer
from typing import Any

from numpy.typing import NDArray

from afpkd.errors import UserError

MOST_SECONDS = 600.0
"""Of one call; a batch of a large network on a slow processor takes seconds."""


def answers(session: Any, feed: Mapping[str, NDArray[Any]], what: object) -> list[NDArray[Any]]:
    """All outputs of an ONNX Runtime session for one call; UserError (E_LOAD) where it fails, or has no end.

    What the graph takes of memory has no limit but the machine's.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = Timer(MOST_SECONDS, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        found: list[NDArray[Any]] = session.run(None, dict(feed), options)
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        told = f"no answer within {MOST_SECONDS:g} s: has it a loop?" if options.terminate else line
        raise UserError("E_LOAD", f"{what}: it does not compute: {told}") from None
    finally:
        timer.cancel()
    return found
