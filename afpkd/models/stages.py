"""Where a foreign network's stages end: the maps through which everything it knows of an image passes.

A module's output is a *cut* where, once it is detached from the graph, no gradient leads from the logits to the image:
nothing goes around it. That is what a stage's result must be, both to be imitated and to be refined inside a teacher,
and it is true of ResNet's layer2 but of no branch of it. Of the cuts at each resolution the outermost module is taken,
and of these the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from afpkd.errors import UserError

MOST_STAGES = 4  # the deepest ones: what ReviewKD takes of networks for ImageNet; a stem's map is hardly a feature
_TRIES = 60  # modules tried a resolution: where none of them is a cut, branches run side by side at this resolution


class Call(NamedTuple):
    """One module call of a forward pass, in the order in which calls end; versions count writes into a tensor."""

    name: str
    output: Tensor
    input: Tensor | None
    versions: tuple[int, int]


class Tap(NamedTuple):
    """Where a stage's map is read: what `module` returns, or with `before` what it is given, in its `call`-th call.

    copied: the network writes over the map later (`F.relu(x, inplace=True)`), so it goes on with a copy.
    """

    module: str
    before: bool
    call: int
    copied: bool


Logits = Callable[[Tensor], Tensor]


def recorded(network: nn.Module, logits: Logits, image: Tensor) -> tuple[list[Call], Tensor]:
    """Every call of a submodule that returns a tensor, and the logits, of one forward pass."""
    calls: list[Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[object, ...], named: dict[str, object], output: object) -> None:
            if isinstance(output, Tensor):
                given = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor)), None)
                calls.append(Call(name, output, given, (output._version, -1 if given is None else given._version)))

        return hook

    handles = [
        module.register_forward_hook(note(name), with_kwargs=True) for name, module in network.named_modules() if name
    ]
    try:
        return calls, logits(image)
    finally:
        for handle in handles:
            handle.remove()


def stage_ends(network: nn.Module, logits: Logits, image: Tensor, calls: list[Call]) -> list[str]:
    """Names of the modules whose outputs end the stages, shallow to deep; none where there are no two resolutions.

    Nor where no gradient reaches the image in any case (`torch.no_grad()` in the forward): no cut could be told.
    """
    with torch.enable_grad():
        if not logits(image.clone().requires_grad_()).requires_grad:
            return []
    once = {name for name, num in Counter(call.name for call in calls).items() if num == 1}
    maps = [(at, call) for at, call in enumerate(calls) if call.name in once and _is_map(call.output, image)]
    by_size: dict[tuple[int, int], list[tuple[int, Call]]] = {}
    for at, call in maps:
        by_size.setdefault((call.output.shape[2], call.output.shape[3]), []).append((at, call))
    ends: list[tuple[int, str]] = []
    for _, found in sorted(by_size.items()):  # small, that is deep ones first
        outermost = sorted(found, key=lambda entry: (entry[1].name.count("."), -entry[0]))[:_TRIES]
        cuts = ((at, call.name) for at, call in outermost if _is_cut(network, logits, image, call.name))
        end = next(cuts, None)
        if end is not None and (not ends or end[0] < ends[-1][0]):  # a deeper map comes later: no upsampled one counts
            ends.append(end)
    names = [name for _, name in reversed(ends[:MOST_STAGES])]
    return names if len(names) > 1 else []


def named_stages(network: nn.Module, image: Tensor, calls: list[Call], names: tuple[str, ...]) -> list[str]:
    """The stages that a recipe names, checked. UserError: an unknown module, one called twice, or one without a map; or
    stages that do not follow each other. A branch may be named: prompts then mask what passes through it alone.
    """
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules:
            near = [known for known in modules if known.split(".")[0] == name.split(".")[0]] or list(modules)[1:]
            raise UserError(
                "E_NETWORK_FIT", f"stages: the network has no module '{name}' (it has: {', '.join(near[:8])}, ...)"
            )
        found = [call for call in calls if call.name == name]
        if len(found) != 1 or not _is_map(found[0].output, image):
            shape = list(found[0].output.shape) if found else None
            raise UserError(
                "E_NETWORK_FIT",
                f"stages: '{name}' gives no map N, C, H, W exactly once (called {len(found)} times, {shape})",
            )
    ends = [call.name for call in calls if call.name in names]
    if ends != list(names):
        raise UserError("E_NETWORK_FIT", f"stages: name each once, shallow to deep: {', '.join(ends)}")
    return list(names)


def tap_of(network: nn.Module, calls: list[Call], name: str) -> Tap:
    """Where the map of a stage is read: before its last activation where that is a module of its own.

    The pre-activation is what ReviewKD and AFPKD imitate. The activation is found by its result being the stage's.
    """
    modules = dict(network.named_modules())
    (end,) = (call for call in calls if call.name == name)
    for at, call in enumerate(calls):
        if call.output is end.output and isinstance(modules[call.name], _ACTIVATIONS) and call.input is not None:
            before = sum(other.name == call.name for other in calls[:at])
            return Tap(call.name, True, before, copied=call.input._version != call.versions[1])
    return Tap(name, False, 0, copied=end.output._version != end.versions[0])


def last_linear(network: nn.Module, calls: list[Call], logits: Tensor) -> str:
    """The name of the nn.Linear, or 1x1 convolution of one position, whose output is the logits. UserError: none is."""
    modules = dict(network.named_modules())
    for call in reversed(calls):
        scores = _scores(modules[call.name], call)
        if scores is not None and scores.shape == logits.shape and torch.equal(scores, logits):
            return call.name
    raise UserError(
        "E_NETWORK_FIT", "its class scores are not the output of an nn.Linear, which distillation needs to know"
    )


def _scores(module: nn.Module, call: Call) -> Tensor | None:
    """What a linear layer gives; None of any other."""
    if isinstance(module, nn.Linear):
        return call.output
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    if pointwise and call.input is not None and call.input.shape[2:] == (1, 1):
        return call.output.flatten(1)
    return None


def _is_map(output: Tensor, image: Tensor) -> bool:
    """N, C, H, W with the image's proportions, smaller or equal, and more than one position.

    Maps of transformers that keep channels last (Swin) have other proportions.
    """
    if output.ndim != 4 or torch.equal(output, image):  # an idle Dropout gives the image back
        return False
    strides = [whole / part for whole, part in zip(image.shape[-2:], output.shape[-2:], strict=True)]
    return min(output.shape[-2:]) > 1 and min(strides) >= 1 and max(strides) <= 1.3 * min(strides)


def _is_cut(network: nn.Module, logits: Logits, image: Tensor, name: str) -> bool:
    handle = network.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output.detach())
    try:
        with torch.enable_grad():
            return not logits(image.clone().requires_grad_()).requires_grad
    finally:
        handle.remove()


_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.SiLU,
    nn.GELU,
    nn.ELU,
    nn.Hardswish,
    nn.Mish,
)
