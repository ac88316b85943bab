"""Distillation methods: `options.py` lists them, METHOD.py holds the losses; it, and torch, is imported when built."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afpkd.distillers.options import OPTIONS
from afpkd.errors import UserError
from afpkd.record import sha256_of

if TYPE_CHECKING:
    from afpkd.distillers.distiller import Distiller
    from afpkd.models.outputs import Shapes


def build_distiller(method: str, student: Shapes, teacher: Shapes, **options: Any) -> Distiller:
    """Build `method` for a pair of networks; its adapters size themselves from the probed shapes. Raises UserError."""
    require_maps(method, "teacher", teacher)
    require_maps(method, "student", student)
    return distiller_class(method)(student, teacher, **options)


def distiller_class(method: str) -> type[Distiller]:
    """The one `Distiller` that the file METHOD.py of this folder makes."""
    from afpkd.distillers.distiller import Distiller

    module = importlib.import_module(f"{__name__}.{method}")
    own = [kind for kind in vars(module).values() if getattr(kind, "__module__", None) == module.__name__]
    found = [kind for kind in own if isinstance(kind, type) and issubclass(kind, Distiller)]
    assert len(found) == 1, f"{module.__file__}: one class derived from Distiller was expected, it makes {found}"
    return found[0]


def code_digest(method: str) -> str:
    """SHA-256 of METHOD.py: who writes a distiller changes it while a training with it is unfinished."""
    return sha256_of(Path(__file__).with_name(f"{method}.py"))


def require_maps(method: str, whose: str, shapes: Shapes) -> None:
    """UserError where `method` imitates feature maps and the network has none."""
    if OPTIONS[method].imitates_maps and not shapes.channels:
        raise UserError(
            "E_METHOD_FIT",
            f"{method} imitates feature maps, and the {whose} has none at two resolutions or more (a transformer? one "
            "that computes under torch.no_grad?): name its `stages`, or use kd or dkd, which look at its answers",
        )
