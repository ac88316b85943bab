"""What bench/accuracy.py compares: methods with the weights chosen on the held-out split, and AFPKD's controls."""

from __future__ import annotations

from typing import NamedTuple

from afpkd.record import Json

ALL: tuple[int, ...] = (0, 1, 2)
ONE: tuple[int, ...] = (0,)

# Phase 1 as FreeKD, AFPKD's ancestor, reads: tokens averaged and the same for every image, the task's loss, an overlap
# penalty. It need not choose.
AS_WRITTEN = {"objective": "task", "united": False, "gate": False, "overlap_weight": 1.0, "must_choose": False}

METHODS: dict[str, Json] = {
    "none": {"method": "none"},
    "kd": {"method": "kd", "kd_weight": 2.7},
    "dkd": {"method": "dkd", "beta": 3.5},
    "reviewkd": {"method": "reviewkd", "gamma": 60.0},
    "reviewkd activated": {"method": "reviewkd", "gamma": 60.0, "activated": True},
    "catkd": {"method": "catkd", "beta": 5.0},
    "afpkd": {"method": "afpkd"},
    "freekd": {"method": "freekd", "mu": 2000.0, "prompts": AS_WRITTEN},
}

# AFPKD with one thing changed (untrained prompts: masks and omega, which stem from them): what explains its number?
# Other masks weigh other bands, and their loss sends a smaller gradient into the student: at mu 60 of norm 2.53 without
# a mask, 2.77 with shuffled ones, 2.25 with untrained prompts or bare bands, after the first epoch of seed 0; AFPKD's
# 5.26. Their mu is raised until these are equal after that epoch; in later ones they part again.
CONTROLS: dict[str, Json] = {
    "reviewkd + local branch": {"mu": 0.0, "gamma": 60.0, "local_branch": True},
    "no mask": {"mask": "constant", "mu": 125.0},
    "untrained prompts": {"mask": "untrained", "mu": 140.0},
    "shuffled masks": {"mask": "shuffled", "mu": 114.0},
    "band means": {"mask": "banded"},
    "no position weight": {"position_weight": False},
    "bare bands": {"mask": "constant", "position_weight": False, "mu": 140.0},
    "no gate": {"prompts": {"gate": False}},
    "no fusion": {"fusion": "1x1"},
    "local branch": {"local_branch": True},
    "low band": {"bands": "low"},
    "detail bands": {"bands": "details"},
    "1 token": {"prompts": {"tokens": 1}},
    "4 tokens": {"prompts": {"tokens": 4}},
    "6 tokens": {"prompts": {"tokens": 6}},
    "1 scale": {"prompts": {"scales": 1}},
    "2 scales": {"prompts": {"scales": 2}},
    "with logits": {"kappa": 1.0},
    "area a band": {"normalise": "band"},
    "as written": {"normalise": "band", "prompts": AS_WRITTEN},
}

VARIANTS: dict[str, Json] = METHODS | {name: {"method": "afpkd", **changed} for name, changed in CONTROLS.items()}

THREE_SEEDS = {"none", "kd", "reviewkd", "reviewkd activated", "catkd", "afpkd"}
THREE_SEEDS |= {"reviewkd + local branch", "no mask", "untrained prompts", "shuffled masks", "band means", "bare bands"}
SEEDS = {name: ALL if name in THREE_SEEDS else ONE for name in VARIANTS}


class Protocol(NamedTuple):
    """Variants of one recipe, trained under equal conditions; their rows are `results/<result>.jsonl`."""

    recipe: str
    result: str
    variants: dict[str, Json]
    seeds: dict[str, tuple[int, ...]]

    def on_gpu(self) -> Protocol:
        """The same on a GPU: rows of their own, since no table mixes devices, and all seeds: they cost little there."""
        result = f"{self.result.removesuffix('_cpu')}_gpu"
        most = sorted({seed for own in self.seeds.values() for seed in own})
        return self._replace(result=result, seeds=dict.fromkeys(self.variants, tuple(most)))

    @property
    def folder(self) -> str:
        """Where its runs lie, below the folder of runs."""
        return "bench-accuracy" if self.result == "cifar100_cpu" else f"bench-{self.result}"


FOUR = {name: METHODS[name] for name in ("none", "kd", "reviewkd", "afpkd")}
"""With the weights of the main protocol: not tuned anew for another pair or data set."""

HALF: dict[str, Json] = {
    **{name: {"method": name} for name in ("none", "kd", "dkd", "catkd", "reviewkd", "afpkd")},
    "kd 2.7": METHODS["kd"],
    "catkd 5": METHODS["catkd"],
    "reviewkd 6": {"method": "reviewkd", "gamma": 6.0},
    "reviewkd 60": METHODS["reviewkd"],
    "afpkd 20, 6": {"method": "afpkd", "mu": 20.0, "gamma": 6.0},
    "afpkd 60, 20": {"method": "afpkd", "mu": 60.0, "gamma": 20.0},
}
"""Half the literature's schedule: each method with its weights, the recipe's, and with those that short schedules want.
Held-out data chooses."""

PROTOCOLS = {
    "cifar100": Protocol("cifar100-resnet56-resnet20-cpu", "cifar100_cpu", VARIANTS, SEEDS),
    "cross": Protocol("cifar100-resnet56-mobilenetv2-cpu", "cifar100_cross_cpu", FOUR, dict.fromkeys(FOUR, (0, 1))),
    "tinyimagenet": Protocol("tinyimagenet-cpu", "tinyimagenet_cpu", FOUR, dict.fromkeys(FOUR, ONE)),
    "half": Protocol("cifar100-resnet56-resnet20-half", "cifar100_half", HALF, dict.fromkeys(HALF, ONE)),
}
MAIN = PROTOCOLS["cifar100"]
PUBLISHED = "cifar100-resnet56-resnet20"
"""The recipe of the literature for the main protocol's pair: its `expected` are the published numbers."""


def recipe_text(variant: Json, seed: int, recipe: str = MAIN.recipe) -> str:
    """The TOML of a variant's recipe: the protocol's, one seed, and the changed keys of [distill] and [prompts]."""
    changed = dict(variant)
    prompts = changed.pop("prompts", {})
    lines = [f'extends = "{recipe}"', f"seed = {seed}", "[distill]", *_assignments(changed)]
    return "\n".join([*lines, "[prompts]", *_assignments(prompts)]) + "\n"


def _assignments(table: Json) -> list[str]:
    values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in table.items()}
    return [f'{key} = "{v}"' if isinstance(table[key], str) else f"{key} = {v}" for key, v in values.items()]
