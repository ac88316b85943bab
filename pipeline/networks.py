"""Which network a role has, from a recipe or from its record; ours by their names alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from afpkd.errors import UserError
from afpkd.models import is_foreign
from afpkd.models.user_file import is_user_file, what_it_names
from afpkd.record import Json, digest
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from afpkd.models.foreign import Normalisation


def network_of(recipe: Recipe, role: str) -> Json:
    """`arch`, `stages` of a foreign one, and `own`: the (mean, std) it wants where those of [data] are not its own.

    A teacher with published weights wants what they were trained with, unless the recipe says otherwise.
    """
    if role != "teacher":
        return {"arch": arch_of(recipe, role), "stages": list(recipe.distill.stages), "own": None}
    teacher = recipe.teacher
    own = None if teacher.mean is None else [list(teacher.mean), list(teacher.std or ())]
    if own is None and teacher.weights == "default":
        from afpkd.models.foreign import published_normalisation

        own = [list(values) for values in published_normalisation(teacher.arch)]
    return {"arch": teacher.arch, "stages": list(teacher.stages), "own": own}


def arch_of(recipe: Recipe, role: str) -> str:
    """The network that a recipe names for a role."""
    return recipe.teacher.arch if role == "teacher" else recipe.distill.student


def network_in(record: Json, named: str | None) -> Json:
    """The same from a role's record, which may come from a stranger.

    named: what the caller's own recipe or command names for it. A user's file is run from there alone; UserError where
    the record asks for one that nobody named.
    """
    network: Json = record.get("network") or {"arch": record["arch"], "stages": [], "own": None}
    if not is_user_file(network["arch"]):
        return network
    wanted = label(network["arch"])
    if named is None or not is_user_file(named) or label(named) != wanted:
        told = (
            f"the record asks for {network['arch']}, whose code would be run: if it is yours, name it: --arch {wanted}"
        )
        raise UserError("E_NETWORK_FILE", told)
    return {**network, "arch": named}


def facts_of(network: Json) -> Json:
    """What a record says of it: its name for people, and where the name alone does not make it again, all of it."""
    plain = not is_foreign(network["arch"]) and network["own"] is None
    return {"arch": label(network["arch"]), **({} if plain else {"network": network})}


def facts_beside_weights(network: Json | None) -> dict[str, str]:
    """What makes another network of the same tensors, for the header of their file: its content is then another, too.

    Nothing for prompts, and for a network of ours: that is made in one way only.
    """
    if network is None or "network" not in facts_of(network):
        return {}
    return {"network": digest([what_it_names(network["arch"]), network["stages"], network["own"]])}


def require_own_code(record: Json, named: str | None, weights: Path) -> None:
    """UserError where a user's file has changed since a role's weights were trained in it: they may still fit.

    record, named: as in `network_in`.
    """
    from afpkd.checkpoint import facts_of_weights

    network = network_in(record, named)
    trained_in = facts_of_weights(weights).get("network")
    if is_user_file(network["arch"]) and trained_in not in (None, facts_beside_weights(network)["network"]):
        told = f"{network['arch']}: the file is not the one in which {weights} were trained"
        raise UserError("E_RUN_CHANGED", f"{told}: put it back, or train again")


def label(arch: str) -> str:
    """A model's name for people: a user's file without its folder."""
    file, _, function = arch.rpartition(":")
    return f"{Path(file).name}:{function}" if is_user_file(arch) else arch


def build_network(
    network: Json,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    given: Normalisation,
    published: bool = False,
) -> nn.Module:
    """Build it for images that are normalised by `given`; with `published` it starts from its library's weights."""
    from afpkd.models import build_model

    model = build_model(
        network["arch"],
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        stages=tuple(network["stages"]),
        published=published,
    )
    if network["own"] is None:
        return model
    from afpkd.models.wrapped import renormalised

    mean, std = (_of_channels(values, in_channels) for values in network["own"])
    return renormalised(model, given, (mean, std))


def recorded_network(record: Json, named: str | None = None) -> nn.Module:
    """The untrained network of a role's record; `named` as in `network_in`."""
    given = record["preprocessing"]["mean"], record["preprocessing"]["std"]
    facts = {key: record[key] for key in ("num_classes", "in_channels")}
    return build_network(network_in(record, named), **facts, image_size=tuple(record["image_size"]), given=given)


def layer_names(model: nn.Module) -> set[str]:
    """What its layers are called; with the prefix that a network wrapped for its own normalisation has in a graph."""
    from afpkd.models.wrapped import PREFIX, Renormalised

    names = {key.rpartition(".")[0] for key in model.state_dict()}
    return names | {PREFIX + name for name in names} if isinstance(model, Renormalised) else names


def _of_channels(values: list[float], num: int) -> tuple[float, ...]:
    """Published values of red, green and blue for grey images: their mean."""
    return tuple(values) if len(values) == num else (sum(values) / len(values),) * num
