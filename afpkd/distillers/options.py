"""The options of every distiller: names, defaults, meaning, source. No torch: a recipe is checked without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from afpkd.settings import require_between, require_defaults

WARM_UP = 20 / 240
"""ReviewKD ramps its weight over the first 20 of 240 epochs; kept as a fraction so that short recipes are fair."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every method says of itself; its own options are fields, each with its meaning below it."""

    uses_prompts: ClassVar[bool] = False
    """Whether it needs phase 1."""
    needs_logits: ClassVar[bool] = False
    """Whether it looks at the logits of a classifier: a detector cannot be distilled by it."""
    imitates_maps: ClassVar[bool] = False
    """Whether it needs feature maps at two resolutions or more: a transformer has none."""
    loss_weights: ClassVar[tuple[str, ...]] = ()
    """Its options that weigh a loss: with all of them at 0 it would distil nothing, and a recipe is refused."""

    @classmethod
    def require_prompts(cls, *, united: bool, gate: bool) -> None:
        """ValueError where prompts of this form would not make the method of its name."""

    def idle_with_two_classes(self) -> str:
        """Which option would teach nothing where there are two classes, and what to do; empty: none."""
        if getattr(self, "standardise", False):
            return "standardise: of two classes the standardised logits are the same two numbers: leave it out"
        return ""


@dataclass(frozen=True, kw_only=True)
class NoOptions(Options):
    """`none`: the task loss alone."""


@dataclass(frozen=True, kw_only=True)
class KdOptions(Options):
    """`kd`: logits (Hinton et al. 2015); the values are those of the CIFAR-100 literature."""

    loss_weights: ClassVar[tuple[str, ...]] = ("kd_weight",)
    needs_logits: ClassVar[bool] = True
    temperature: float = 4.0
    """T of the softmax."""
    kd_weight: float = 0.9
    """Weight of the T^2-scaled KL term."""
    task_weight: float = 0.1
    """Weight of the cross-entropy."""
    standardise: bool = False
    """Compare standardised logits (Sun et al. 2024, who use temperature 2, kd_weight 9, task_weight 0.1)."""


@dataclass(frozen=True, kw_only=True)
class DkdOptions(Options):
    """`dkd`: target and non-target classes apart (Zhao et al. 2022)."""

    loss_weights: ClassVar[tuple[str, ...]] = ("alpha", "beta")
    needs_logits: ClassVar[bool] = True
    temperature: float = 4.0
    """T of the softmax."""
    alpha: float = 1.0
    """Weight of the target-class term."""
    beta: float = 2.0
    """Weight of the non-target term; by pair: 2 (ResNet-56, 110), 6 (WRN, VGG), 8 (32x4, ResNet-50 and WRN to
    another family)."""
    standardise: bool = False
    """Compare standardised logits (Sun et al. 2024)."""
    warm_up: float = WARM_UP
    """Fraction of the schedule over which both weights rise from 0."""

    def idle_with_two_classes(self) -> str:
        """Its second term is one of the classes that are not the target."""
        told = (
            "beta: of two classes one alone is not the target, and nothing is left to compare: set it to 0, or take kd"
        )
        return super().idle_with_two_classes() or (told if self.beta else "")


@dataclass(frozen=True, kw_only=True)
class ImitationOptions(Options):
    """`imitation`: 1x1 adapters and the squared error of every level (Romero et al. 2015)."""

    imitates_maps: ClassVar[bool] = True
    loss_weights: ClassVar[tuple[str, ...]] = ("gamma",)
    gamma: float = 1.0
    """Weight of the mean squared error summed over levels."""
    warm_up: float = WARM_UP
    """Fraction of the schedule over which the weight rises from 0."""
    relative: bool = False
    """Compare maps in units of the teacher's standard deviation of their level (PKD, Cao et al. 2022: of each channel):
    a weight then means the same whatever range a teacher's features have (a detector's neck has any)."""


@dataclass(frozen=True, kw_only=True)
class ReviewKdOptions(Options):
    """`reviewkd`: fused features against all levels of the teacher (Chen et al. 2021)."""

    imitates_maps: ClassVar[bool] = True
    loss_weights: ClassVar[tuple[str, ...]] = ("gamma",)
    gamma: float = 0.6
    """Weight of the HCL, summed over levels; by pair: 0.6 (ResNet-56), 1 (110), 5 (WRN, 8x4), 8 (ShuffleV2)."""
    warm_up: float = WARM_UP
    """Fraction of the schedule over which the weight rises from 0."""
    relative: bool = False
    """Compare maps in units of the teacher's standard deviation of their level (as in `imitation`)."""
    activated: bool = False
    """Fuse the student's maps behind their stage's last ReLU, as the authors' code does of a residual network; before
    it, as AFPKD's are and as the teacher's are for both, by default. Classifiers only: no ReLU ends a neck's levels."""


@dataclass(frozen=True, kw_only=True)
class CatKdOptions(Options):
    """`catkd`: class activation maps (Guo et al. 2023)."""

    loss_weights: ClassVar[tuple[str, ...]] = ("beta",)
    needs_logits: ClassVar[bool] = True
    beta: float = 0.7
    """Weight of the class maps' squared error; by pair: 0.7 (R56-R20), 15 (32x4-8x4), 600 (32x4-Shuffle)."""
    pooled_size: int = 2
    """Side in pixels to which maps are average-pooled (2; ShuffleNets 4)."""
    normalise: bool = False
    """Bring each map to unit L2 norm (on for MobileNetV2 and ShuffleNets)."""

    def __post_init__(self) -> None:
        """Refuse maps of no pixel, whose loss is that of nothing."""
        require_between("pooled_size", self.pooled_size, 1, 1e6)


@dataclass(frozen=True, kw_only=True)
class FreeKdOptions(Options):
    """`freekd`: frequency prompts, position weight, 1x1 adapters (Zhang et al. 2024).

    Its prompts are averaged and have no gate, so [prompts] must say `united = false`, `gate = false` (and, in a recipe
    that extends one with `dropped = "swapped"`, `dropped = "zero"`); the paper's also have `objective = "task"`,
    `overlap_weight = 1`, `must_choose = false`.
    """

    imitates_maps: ClassVar[bool] = True
    loss_weights: ClassVar[tuple[str, ...]] = ("mu",)
    uses_prompts: ClassVar[bool] = True
    mu: float = 5.0
    """Weight of the frequency loss (unnormalised mean over tokens, bands, channels and positions)."""
    warm_up: float = WARM_UP
    """Fraction of the schedule over which the weight rises from 0."""

    @classmethod
    def require_prompts(cls, *, united: bool, gate: bool) -> None:
        """ValueError for AFPKD's prompts."""
        if united or gate:
            keys = "prompts.united = false, prompts.gate = false"
            raise ValueError(f"distill.method: 'freekd' has other prompts than these: set {keys} (docs/reference.md)")


@dataclass(frozen=True, kw_only=True)
class AfpkdOptions(Options):
    """`afpkd`: frequency prompts, position weight, feature fusion (Zhang et al. 2025)."""

    imitates_maps: ClassVar[bool] = True
    loss_weights: ClassVar[tuple[str, ...]] = ("mu", "gamma", "kappa")
    logit_term: ClassVar[tuple[str, ...]] = ("temperature", "standardise")
    """Its options that say something of the logit term alone, which is off by default."""
    uses_prompts: ClassVar[bool] = True
    mu: float = 5.0
    """Weight of the frequency loss."""
    gamma: float = 0.6
    """Weight of the spatial loss (HCL), ReviewKD's value for the pair."""
    kappa: float = 0.0
    """Weight of an added logit term (KL); 0: none, since the paper's abstract names none."""
    temperature: float = 4.0
    """T of the logit term."""
    standardise: bool = False
    """Compare standardised logits in the logit term (Sun et al. 2024)."""
    warm_up: float = WARM_UP
    """Fraction of the schedule over which all weights rise from 0."""
    relative: bool = False
    """Compare maps and bands in units of the teacher's standard deviation of their level (as in `imitation`)."""
    normalise: Literal["level", "band", "none"] = "level"
    """What the frequency loss is divided by: the mask's area in the level, in the band, or nothing."""
    mask: Literal["prompts", "untrained", "shuffled", "banded", "constant"] = "prompts"
    """Pixel masks: of the tuned prompts; as controls of untuned ones (their position weights are untuned, too), the
    tuned ones' pixels shuffled over the level or averaged over each band, or none."""
    bands: Literal["all", "low", "details"] = "all"
    """Bands that are distilled."""
    position_weight: bool = True
    """Weigh channels by omega."""
    fusion: Literal["top-down", "1x1"] = "top-down"
    """The feature fusion module, or as a control one 1x1 adapter per level."""
    local_branch: bool = False
    """A depthwise 3x3 convolution beside each fused map. It has not earned its place: held-out 47.20 with it, 47.04
    without (CIFAR-100, two epochs, one seed), for a tenth of a step's time."""

    def __post_init__(self) -> None:
        """Refuse what would do nothing."""
        if self.local_branch and self.fusion == "1x1":
            raise ValueError("local_branch: stands beside a fused map: needs fusion = 'top-down'")
        if not self.kappa:
            require_defaults(self, self.logit_term, "kappa is 0, so there is no logit term")
        if not self.mu and not self.gamma:
            require_defaults(
                self, ("fusion", "local_branch", "relative"), "mu and gamma are 0, so no maps are compared"
            )
        if not self.mu:
            frequency = ("mask", "bands", "normalise", "position_weight")
            require_defaults(self, frequency, "mu is 0, so there is no frequency loss")


OPTIONS: dict[str, type[Options]] = {
    "none": NoOptions,
    "kd": KdOptions,
    "dkd": DkdOptions,
    "imitation": ImitationOptions,
    "reviewkd": ReviewKdOptions,
    "catkd": CatKdOptions,
    "freekd": FreeKdOptions,
    "afpkd": AfpkdOptions,
}
"""The methods: all there is of them where no torch is. The losses of METHOD are in `distillers/METHOD.py`."""
