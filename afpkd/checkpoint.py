"""Weights on disk: safetensors of our own, `weights_only` loading of foreign files, and nothing loaded in part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from afpkd.errors import UserError
from afpkd.record import atomic_path

State = dict[str, Tensor]

_TRAINING_STATE_FORMAT = 1  # another one is trained anew

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLAIN = {*_FLOATS, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool}


def save_weights(path: Path, state: State, facts: Mapping[str, str] | None = None) -> None:
    """Write a state dict as safetensors, atomically; `facts` stand in the file's header."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, dict(facts or {}) or None)


def facts_of_weights(path: Path) -> dict[str, str]:
    """What stands in the header of a file of `save_weights`; nothing of a file that is none, as loading it says."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except Exception:  # the reader's own kinds
        return {}


def load_weights(
    module: nn.Module, path: Path, *, key: str = "", strip_prefix: str = "", new_classes: int | None = None
) -> str:
    """Load *all* of `module` from a .safetensors, .pt or .pth file and say so; UserError on any difference.

    A foreign file may hold its tensors under `state_dict` or `model` and prefix them with `module.`: that is found, and
    the line says it. Elsewhere `key` (dotted: `model.ema`) and `strip_prefix` name the place and the prefix.
    new_classes: tensors that have so many rows here and another number in the file keep their own values: the last
    layer of a network that learns other classes.
    """
    own = module.state_dict()
    state, notes = _tidied(_under(_read(path), key, path), path, strip_prefix, own)
    _require_plain(state, path)
    for name in sorted(own.keys() & state.keys()) if new_classes else ():
        rows, wanted = state[name].shape, own[name].shape
        if rows != wanted and len(rows) == len(wanted) and wanted[0] == new_classes and rows[1:] == wanted[1:]:
            state[name], notes = own[name], f"{notes} ({name} starts anew)"
    # Counters of BatchNorm, which inference never reads: files of torch before 0.4.1 have none.
    state = {name: own[name] for name in own if name.endswith("num_batches_tracked")} | state
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or unexpected or wrong:
        raise UserError(
            "E_WEIGHTS_MISMATCH",
            f"{path}: does not fit {type(module).__name__}: "
            + f"{_some('missing', missing)}{_some('unexpected', unexpected)}"
            + "".join(f"{name} is {_shape(state[name])}, expected {_shape(own[name])}; " for name in wrong[:1])
            + f"{len(own.keys() & state.keys()) - len(wrong)} of {len(own)} tensors fit: nothing was loaded; name the "
            + "network that they were trained with, or other weights",
        )
    state = {name: tensor.to(own[name].dtype) for name, tensor in state.items()}  # 1e300 is infinite in float32
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values() if tensor.is_floating_point()):
        raise UserError(
            "E_WEIGHTS_NAN",
            f"{path}: holds NaN or infinite weights: nothing was loaded; take another file, or train with a lower lr",
        )
    own.update(state)  # as in `copied_state`, their versions go with them
    module.load_state_dict(own)
    return f"loaded {len(state)} of {len(own)} tensors from {path}{notes}"


def copied_state(module: nn.Module) -> State:
    """A module's state dict as it is now, on the CPU, and the modules' versions, which torchvision's MNASNet needs."""
    state: State = module.state_dict()
    for name, tensor in state.items():
        state[name] = tensor.detach().cpu().clone()
    return state


def state_sha256(module: nn.Module) -> str:
    """Hash every parameter and buffer: equal exactly when two networks are bit-equal."""
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def save_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write what a run needs to continue exactly, atomically."""
    with atomic_path(path) as temporary:
        torch.save({"format": _TRAINING_STATE_FORMAT, **state}, temporary)


def load_training_state(path: Path, digest: str) -> dict[str, Any] | None:
    """Read it back; None where there is none, or one of another configuration (`digest`)."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(type(state).__name__)  # noqa: TRY301  one handler for all
    except Exception as error:  # torch's reader of pickles raises whatever broken bytes make of it
        raise UserError(
            "E_TRAIN_STATE", f"{path}: unreadable training state ({_line(error)}): delete it to train anew"
        ) from None
    return state if (state.get("format"), state.get("digest")) == (_TRAINING_STATE_FORMAT, digest) else None


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError("E_WEIGHTS_MISSING", f"{path}: no such weights file: check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader of pickles raises whatever broken bytes make of it
        # torch explains its own option at length, in words that send a user the wrong way
        cause = "" if "weights_only" in str(error) else f" ({_line(error)})"
        told = f"not a file of plain tensors{cause}: save one with torch.save(model.state_dict(), FILE)"
        raise UserError("E_WEIGHTS_FILE", f"{path}: {told}") from None


def _under(loaded: Any, key: str, path: Path) -> Any:
    for part in key.split(".") if key else ():
        if not isinstance(loaded, dict) or part not in loaded:
            there = ", ".join(map(str, list(loaded)[:4])) if isinstance(loaded, dict) else "no mapping"
            raise UserError(
                "E_WEIGHTS_FILE", f"{path}: holds no '{key}' (at '{part}' there is: {there}): mend weights.key"
            )
        loaded = loaded[part]
    return loaded


def _tidied(loaded: Any, path: Path, strip_prefix: str, own: State) -> tuple[State, str]:
    notes = ""
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            averaged = [
                name for name, value in loaded.items() if isinstance(value, dict) and "ema" in str(name).lower()
            ]
            beside = "".join(f", not '{name}'" for name in averaged)
            loaded, notes = loaded[key], f"{notes} (key '{key}'{beside})"
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise UserError("E_WEIGHTS_FILE", f"{path}: holds no state dict: a mapping from names to tensors was expected")
    prefix = strip_prefix or "module."
    others = [name for name in loaded if not name.startswith(prefix)]
    if strip_prefix and others:
        raise UserError(
            "E_WEIGHTS_FILE", f"{path}: {others[0]} does not begin with '{prefix}': mend weights.strip_prefix"
        )
    has_it_itself = not strip_prefix and not own.keys().isdisjoint(loaded)  # a network may have a part called `module`
    if loaded and not others and not has_it_itself:
        loaded, notes = {name.removeprefix(prefix): t for name, t in loaded.items()}, f"{notes} (without '{prefix}')"
    return loaded, notes


def _require_plain(state: State, path: Path) -> None:
    """Numbers that lie in memory one after the other, and that a network computes with; UserError for any other."""
    for name, tensor in state.items():
        strange = tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta
        if strange or tensor.dtype not in _PLAIN:
            kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else f"{tensor.layout}"
            told = (
                f"{name} is no plain tensor ({kind if strange else tensor.dtype}): save one of numbers, such as float32"
            )
            raise UserError("E_WEIGHTS_FILE", f"{path}: {told}")


def _some(title: str, names: list[str]) -> str:
    return f"{len(names)} {title} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''}); " if names else ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
