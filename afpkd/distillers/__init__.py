"""Distillation methods: one file each, one line each in the dict. torch is imported only when one is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from afpkd.errors import UserError

if TYPE_CHECKING:
    from afpkd.distillers.distiller import Distiller
    from afpkd.models.outputs import Shapes


def _none() -> type[Distiller]:
    from afpkd.distillers.none import NoDistillation

    return NoDistillation


def _kd() -> type[Distiller]:
    from afpkd.distillers.kd import KD

    return KD


def _dkd() -> type[Distiller]:
    from afpkd.distillers.dkd import DKD

    return DKD


def _catkd() -> type[Distiller]:
    from afpkd.distillers.catkd import CATKD

    return CATKD


def _imitation() -> type[Distiller]:
    from afpkd.distillers.imitation import Imitation

    return Imitation


def _reviewkd() -> type[Distiller]:
    from afpkd.distillers.reviewkd import ReviewKD

    return ReviewKD


def _freekd() -> type[Distiller]:
    from afpkd.distillers.freekd import FreeKD

    return FreeKD


def _afpkd() -> type[Distiller]:
    from afpkd.distillers.afpkd import AFPKD

    return AFPKD


DISTILLERS: dict[str, Callable[[], type[Distiller]]] = {
    "none": _none,
    "kd": _kd,
    "dkd": _dkd,
    "imitation": _imitation,
    "reviewkd": _reviewkd,
    "catkd": _catkd,
    "freekd": _freekd,
    "afpkd": _afpkd,
}


IMITATE_MAPS = ("reviewkd", "freekd", "afpkd")


def build_distiller(method: str, student: Shapes, teacher: Shapes, **options: Any) -> Distiller:
    """Build `method` for a pair of networks; its adapters size themselves from the probed shapes. Raises UserError."""
    require_maps(method, "teacher", teacher)
    require_maps(method, "student", student)
    return DISTILLERS[method]()(student, teacher, **options)


def require_maps(method: str, whose: str, shapes: Shapes) -> None:
    """UserError where `method` imitates feature maps and the network has none."""
    if method in IMITATE_MAPS and not shapes.channels:
        raise UserError(
            "E_METHOD_FIT",
            f"{method} imitates feature maps, and the {whose} has none at two resolutions or more (a transformer?): "
            "use kd or dkd, which look at its answers",
        )
