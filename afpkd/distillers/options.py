"""The options of every distiller: names, defaults, meaning, source. No torch: a recipe is checked without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

WARM_UP = 20 / 240
"""ReviewKD ramps its weight over the first 20 of 240 epochs; kept as a fraction so that short recipes are fair."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """`none`: the task loss alone."""

    uses_prompts: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class KdOptions:
    """`kd`: logits (Hinton et al. 2015); the values are those of the CIFAR-100 literature."""

    uses_prompts: ClassVar[bool] = False
    temperature: float = 4.0
    """T of the softmax."""
    kd_weight: float = 0.9
    """Weight of the T^2-scaled KL term."""
    task_weight: float = 0.1
    """Weight of the cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class ReviewKdOptions:
    """`reviewkd`: fused features against all levels of the teacher (Chen et al. 2021)."""

    uses_prompts: ClassVar[bool] = False
    gamma: float = 0.6
    """Weight of the HCL summed over levels; a value a pair: 0.6 (ResNet-56), 1 (110), 5 (WRN, 8x4), 8 (ShuffleV2)."""
    warm_up: float = WARM_UP
    """Fraction of the schedule over which the weight rises from 0."""


@dataclass(frozen=True, kw_only=True)
class AfpkdOptions:
    """`afpkd`: frequency prompts, position weight, feature fusion (Zhang et al. 2025)."""

    uses_prompts: ClassVar[bool] = True
    mu: float = 5.0
    """Weight of the frequency loss."""
    gamma: float = 0.6
    """Weight of the spatial loss (HCL), ReviewKD's value for the pair."""
    kappa: float = 0.0
    """Weight of an added logit term (KL); 0 is the paper's method."""
    temperature: float = 4.0
    """T of the logit term."""
    warm_up: float = WARM_UP
    """Fraction of the schedule over which all weights rise from 0."""


OPTIONS: dict[str, type[NoOptions | KdOptions | ReviewKdOptions | AfpkdOptions]] = {
    "none": NoOptions,
    "kd": KdOptions,
    "reviewkd": ReviewKdOptions,
    "afpkd": AfpkdOptions,
}

LOSS_WEIGHTS = ("kd_weight", "mu", "gamma", "kappa")
"""The options that weigh a loss: a method with all of its own at 0 would distil nothing."""
