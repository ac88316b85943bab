"""The section of a recipe on phase 1."""

from __future__ import annotations

import math
from typing import Literal

from pydantic.dataclasses import dataclass

from afpkd.record import Json
from afpkd.settings import TrainSettings, require_between, require_defaults
from pipeline.recipe_outputs import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompts(TrainSettings):
    """Phase 1: how the frequency prompts are fine-tuned inside the frozen teacher (MasKD's recipe, shortened)."""

    epochs: float = 2000 * 64 / 50_000
    """Default: 2,000 steps of 64 images of CIFAR."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser."""
    lr: float = 0.03
    """Peak learning rate (MasKD: 0.01)."""
    weight_decay: float = 0.0
    """L2 penalty (MasKD: 1e-3)."""
    schedule: Literal["multistep", "onecycle", "cosine"] = "cosine"
    """Learning-rate schedule."""
    tokens: int = 2
    """T, prompts per band."""
    scales: int = 3
    """J, at most so many wavelet scales per level (fewer on small maps)."""
    gate: bool = True
    """Adapt the tokens to each image by its own band energy."""
    objective: Literal["choose", "task"] = "choose"
    """choose: keep the teacher's answers on a budget of mask area; task: the task's loss (FreeKD)."""
    area: float = 0.25
    """Budget of `choose`: the share of a level that its masks may keep, the mean over its bands. Less than where masks
    start (two tokens: 0.9277; averaged ones: 0.5), or 1: none."""
    area_weight: float = 30.0
    """Weight of the squared excess over the budget."""
    overlap_weight: float = 0.0
    """lambda of the mask-overlap loss (FreeKD: 1); averaged tokens meet it with a constant mask."""
    united: bool = True
    """A pixel is of interest where any token says so; false: where the tokens' average does, and the position weight's
    relations are not standardised, as FreeKD has both."""
    dropped: Literal["zero", "swapped"] = "zero"
    """What takes the place of what a mask drops: zero, or what another image of the batch has there (for teachers whose
    next layer normalises, as FCOS's head does: there a constant mask of zeros would cost nothing). Needs `united`."""
    must_choose: bool = True
    """Stop where the masks are no better than random or constant ones that keep an equal share of coefficients; false:
    only say so."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        TrainSettings.__post_init__(self)
        for key, least, most in (
            ("tokens", 1, 64),
            ("scales", 1, 8),
            ("overlap_weight", 0, 1e6),
            ("area_weight", 0, 1e6),
            ("area", 1e-3, 1),
        ):
            require_between(key, getattr(self, key), least, most)
        if self.tokens == 1 and self.overlap_weight:
            raise ValueError("overlap_weight: a single token overlaps with nothing: set it to 0")
        if self.tokens == 1 and self.gate and not self.united:
            raise ValueError("gate: it weighs averaged tokens against each other, and there is one: set it to false")
        if self.objective == "task":
            require_defaults(self, ("area", "area_weight"), "only objective = 'choose' has a budget of area")
        start = start_area(self.tokens, united=self.united)
        if self.objective == "choose" and self.area_weight and start <= self.area < 1:
            told = f"masks of {self.tokens} token(s) start with an area of {start:.4g}: a budget above teaches nothing"
            raise ValueError(f"area: {told}: set less, or 1 for none, got {self.area:g}")
        if self.dropped == "swapped" and not self.united:
            told = "averaged masks are doubled, and what fills in would come on top: set it to 'zero', or united = true"
            raise ValueError(f"dropped: {told}")
        if self.compile:
            raise ValueError("compile: prompts act inside the teacher and are not compiled: leave it out")

    def mend(self) -> str:
        """What may help prompts that do not choose, of what the other settings allow."""
        tries = ["raise epochs", "lower lr"]
        tries += ["raise area"] if self.objective == "choose" and self.area < 1 else []
        tries += ['try dropped = "swapped"'] if self.united and self.dropped != "swapped" else []
        return f"in [prompts] {', '.join(tries)}, or set must_choose = false"

    def shape(self) -> Json:
        """What the prompts are, as opposed to how they are trained: the keywords of `FrequencyPrompts`."""
        return {key: getattr(self, key) for key in ("tokens", "scales", "united", "gate", "dropped")}


def start_area(tokens: int, *, united: bool) -> float:
    """What new masks keep, 0..1: each token starts with sigmoid(1) where they are united, with a half otherwise."""
    return 1 - (1 / (1 + math.e)) ** tokens if united else 0.5
