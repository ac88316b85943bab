"""`FILE.py:FUNCTION`: a network that a user's own Python file makes. The file is run, and only when it is named.

What was hashed is what is run: a file is read once a process. Modules that it imports beside it are not looked at.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from afpkd.errors import UserError
from afpkd.record import expanded

if TYPE_CHECKING:
    from torch import nn


def is_user_file(arch: str) -> bool:
    """Whether `arch` has the form FILE.py:FUNCTION."""
    return arch.rpartition(":")[0].endswith(".py")


def file_sha256(arch: str) -> str:
    """The hash of FILE.py as it will be run. UserError where it is missing."""
    return hashlib.sha256(_source(_path(arch))).hexdigest()


def what_it_names(arch: str) -> str | list[str]:
    """An architecture's name as part of an identity: a user's function by its file's content, wherever it lies."""
    return [arch.rpartition(":")[2], file_sha256(arch)] if is_user_file(arch) else arch


def model_from_file(arch: str, **wanted: Any) -> nn.Module:
    """Call FUNCTION of FILE.py and return the network that it makes, untrained.

    wanted: what the function is told of `num_classes`, `in_channels`, ..., as far as its parameters have these names.
    UserError, in one line, for whatever goes wrong in the file.
    """
    from torch import nn

    path, name = _path(arch), arch.rpartition(":")[2]
    module = ModuleType(f"user_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    _guarded(arch, path, lambda: _run(path, module))
    make = getattr(module, name, None)
    if not callable(make):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
        raise UserError(
            "E_NETWORK_FILE", f"{arch}: {path.name} has no function '{name}' (it has: {', '.join(known) or 'none'})"
        )
    parameters = inspect.signature(make).parameters
    everything = any(found.kind is inspect.Parameter.VAR_KEYWORD for found in parameters.values())
    told = {key: value for key, value in wanted.items() if everything or key in parameters}
    model = _guarded(arch, path, lambda: make(**told))
    if not isinstance(model, nn.Module):
        raise UserError("E_NETWORK_FILE", f"{arch}: it returned {type(model).__name__}, a torch.nn.Module was expected")
    if any(hasattr(part, "_orig_mod") for part in model.modules()):
        mend = "return it as it is before torch.compile (a recipe's `compile` does that)"
        raise UserError("E_NETWORK_FILE", f"{arch}: it returned a compiled network: {mend}")
    return model


def _path(arch: str) -> Path:
    file = arch.rpartition(":")[0]
    path = expanded(file)
    if not file or path.suffix != ".py":
        raise UserError("E_NETWORK_FILE", f"{arch}: FILE.py:FUNCTION was expected, such as resnet.py:resnet20")
    if not path.is_file():
        raise UserError("E_NETWORK_FILE", f"{arch}: {path}: no such file")
    return path.resolve()


@functools.cache
def _source(path: Path) -> bytes:
    return path.read_bytes()


def _run(path: Path, module: ModuleType) -> None:
    """As `python FILE.py` would, without arguments: ours are not for it."""
    arguments, sys.argv = sys.argv, [str(path)]
    try:
        exec(compile(_source(path), path, "exec"), vars(module))  # noqa: S102  the user's own
    finally:
        sys.argv = arguments


def _guarded(arch: str, path: Path, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:  # whatever a stranger's file raises
        raise UserError("E_NETWORK_FILE", f"{arch}: {_where(error, path)}") from error


def _where(error: BaseException, path: Path) -> str:
    """The error with the line of the user's file that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = f":{lines[-1]}" if lines else f":{error.lineno}" if isinstance(error, SyntaxError) else ""
    told = cause_of(error)
    if isinstance(error, SystemExit):
        told = f'it ends the program ({told}): what a script does belongs below `if __name__ == "__main__":`'
    module = str(getattr(error, "name", None)).partition(".")[0]
    beside = [path.parent / name for name in (module, f"{module}.py")]
    if isinstance(error, ModuleNotFoundError) and any(place.exists() for place in beside):
        told += ": put it into this one file, which alone is known to a run, or install it as a package"
    return f"{path.name}{line}: {told}"


def cause_of(error: BaseException) -> str:
    """What was raised and what it says, on one line; where it says nothing, the line of code, not torch's, of it."""
    kind, said = type(error).__name__, " ".join(str(error).split())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "torch" not in Path(frame.filename).parts]
    code = frames[-1].line if frames else None
    if said or not code or isinstance(error, SystemExit):
        return f"{kind}: {said}" if said else kind
    return f"{kind} ({code})"
