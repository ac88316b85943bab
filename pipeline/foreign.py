"""A model that the pipeline did not train, as a bundle with the same files and the same checks."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from afpkd.record import UserError

if TYPE_CHECKING:
    from torch import nn


def model_from_file(arch: str) -> nn.Module:
    """Call FUNCTION of FILE.py (`arch`, "FILE.py:FUNCTION"): it takes no arguments and returns the network, untrained.

    The file is the user's own code and is run. UserError, in one line, for whatever goes wrong in it.
    """
    from torch import nn

    file, _, function = arch.rpartition(":")
    path = Path(file).expanduser()
    if not file or path.suffix != ".py":
        raise UserError(f"--arch {arch}: FILE.py:FUNCTION was expected, such as resnet.py:resnet20")
    if not path.is_file():
        raise UserError(f"--arch {arch}: {path}: no such file")
    spec = importlib.util.spec_from_file_location("foreign_model", path)
    assert spec is not None, "a .py file always has a loader"
    assert spec.loader is not None, "the same"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's file raises
        raise UserError(f"--arch {arch}: {_where(error, path)}") from error
    make = getattr(module, function, None)
    if not callable(make):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
        raise UserError(
            f"--arch {arch}: {path.name} has no function '{function}' (it has: {', '.join(known) or 'none'})"
        )
    try:
        model = make()
    except Exception as error:  # the same
        raise UserError(f"--arch {arch}: {_where(error, path)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"--arch {arch}: it returned {type(model).__name__}, a torch.nn.Module was expected")
    return model


def _where(error: Exception, path: Path) -> str:
    """The error with the line of the user's file that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = f":{lines[-1]}" if lines else f":{error.lineno}" if isinstance(error, SyntaxError) else ""
    return f"{path.name}{line}: {type(error).__name__}: {' '.join(str(error).split())}"
