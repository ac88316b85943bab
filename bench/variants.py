"""What bench/accuracy.py compares: methods with the weights chosen on the held-out split, and AFPKD's controls."""

from __future__ import annotations

from afpkd.record import Json

PROTOCOL = "cifar100-resnet56-resnet20-cpu"

VARIANTS: dict[str, Json] = {
    "none": {"method": "none"},
    "kd": {"method": "kd", "kd_weight": 2.7},
    "dkd": {"method": "dkd", "beta": 3.5},
    "reviewkd": {"method": "reviewkd", "gamma": 60.0},
    "catkd": {"method": "catkd", "beta": 5.0},
    "afpkd": {"method": "afpkd"},
}

ALL, ONE = (0, 1, 2), (0,)
SEEDS = {"none": ALL, "kd": ALL, "dkd": ONE, "reviewkd": ALL, "catkd": ALL, "afpkd": ALL}


def recipe_text(variant: Json, seed: int) -> str:
    """The TOML of a variant's recipe: the protocol, one seed, and the changed keys of [distill] and [prompts]."""
    changed = dict(variant)
    prompts = changed.pop("prompts", {})
    lines = [f'extends = "{PROTOCOL}"', f"seed = {seed}", "[distill]", *_assignments(changed)]
    return "\n".join([*lines, "[prompts]", *_assignments(prompts)]) + "\n"


def _assignments(table: Json) -> list[str]:
    values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in table.items()}
    return [f'{key} = "{v}"' if isinstance(table[key], str) else f"{key} = {v}" for key, v in values.items()]
