"""Any network that gives class scores, with the features and the `refine` that distillation needs.

The network stays as it is: maps are read, and refined ones put in their place, by hooks on its own modules. Its state
dict keeps the network's own names, so that weights go in from other people's files and out to other people's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from afpkd.errors import UserError
from afpkd.models.outputs import Outputs, Refine
from afpkd.models.stages import Call, Tap, last_linear, named_stages, recorded, stage_ends, tap_of

PREFIX = "network."
"""Of the layers of a network that is wrapped, where its own names are not seen."""


class Wrapped(nn.Module):
    """`network` (images -> logits) as a network of ours.

    Its stages are those named, or found at `image_size` (H, W): see `stages.py`. A network without two maps of
    different resolution (a transformer) has no features: only methods that look at logits can use it.
    Outputs.pooled is what the last linear layer is given; Outputs.final is the last map where its mean is that vector,
    else the vector as a map of one position.
    """

    def __init__(
        self, network: nn.Module, *, in_channels: int, image_size: tuple[int, int], stages: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network = without_inplace(network)
        image = torch.linspace(-1, 1, in_channels * image_size[0] * image_size[1]).view(1, in_channels, *image_size)
        with at_rest(network):
            calls, logits = recorded(network, self._logits, image)
            self.classifier_name = last_linear(network, calls, logits)
            found = (
                named_stages(network, image, calls, tuple(stages))
                if stages
                else stage_ends(network, self._logits, image, calls)
            )
            self.taps = [tap_of(network, calls, name) for name in found]
            self.final_name = _final_map(calls, self.classifier_name)
        keep_names(self)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Outputs:
        """Classify `x`; `refine` may change each stage's map on its way (see `Refine`)."""
        seen: dict[str, Tensor] = {}
        # Hooks live as long as the pass: the network that is copied, exported or handed on has none.
        with ExitStack() as hooks:
            for handle in self._hooks(seen, refine):
                hooks.callback(handle.remove)
            logits = self._logits(x)
        pooled = seen["pooled"]
        features = [seen[f"stage {level}"] for level in range(len(self.taps))]
        classifier = self.network.get_submodule(self.classifier_name)
        assert isinstance(classifier, nn.Linear | nn.Conv2d)
        return Outputs(logits, features, pooled, seen.get("final", pooled[:, :, None, None]), classifier)

    def bare(self) -> nn.Module:
        """The network alone: what is exported, and what its author knows."""
        return self.network

    def _logits(self, x: Tensor) -> Tensor:
        return logits_of(self.network(x))

    def _hooks(self, seen: dict[str, Tensor], refine: Refine | None) -> Iterator[RemovableHandle]:
        for level, tap in enumerate(self.taps):
            stage = _Stage(level, tap, seen, refine)
            module = self.network.get_submodule(tap.module)
            if tap.before:
                yield module.register_forward_pre_hook(_on_input(stage), with_kwargs=True)
            else:
                yield module.register_forward_hook(lambda _module, _inputs, output, stage=stage: stage(output))
        classifier = self.network.get_submodule(self.classifier_name)
        yield classifier.register_forward_pre_hook(_on_input(partial(_kept, seen)), with_kwargs=True)
        if self.final_name is not None:
            final = self.network.get_submodule(self.final_name)
            yield final.register_forward_hook(lambda _module, _inputs, output: seen.update(final=output))


def _on_input(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A hook that changes what a module is given, by its place or by its name (`self.fc(input=x)`)."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if inputs:
            return (change(inputs[0]), *inputs[1:]), named
        first = next(name for name, value in named.items() if isinstance(value, Tensor))
        return inputs, {**named, first: change(named[first])}

    return hook


def _kept(seen: dict[str, Tensor], pooled: Tensor) -> Tensor:
    seen["pooled"] = pooled.flatten(1)
    return pooled


class _Stage:
    """Reads, and refines, the map of one stage during one pass."""

    def __init__(self, level: int, tap: Tap, seen: dict[str, Tensor], refine: Refine | None) -> None:
        self.level, self.tap, self.seen, self.refine = level, tap, seen, refine
        self.calls = 0

    def __call__(self, feature: Tensor) -> Tensor:
        self.calls += 1
        if self.calls - 1 != self.tap.call:  # a ReLU that a block uses twice
            return feature
        if self.refine is not None:
            feature = self.refine(self.level, feature)
        self.seen[f"stage {self.level}"] = feature
        return feature.clone() if self.tap.copied else feature


class Renormalised(nn.Module):
    """`network` on images that were normalised for another: (pixel - mean) / std becomes its own."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        keep_names(self)

    def forward(self, x: Tensor, refine: Refine | None = None) -> Any:
        """What `network` returns."""
        own = x * self.scale + self.shift
        return self.network(own) if refine is None else self.network(own, refine)

    def bare(self) -> nn.Module:
        """The same without what only distillation needs."""
        return Renormalised(bare_network(self.network), self.scale, self.shift)


def renormalised(
    network: nn.Module, given: tuple[Sequence[float], Sequence[float]], own: tuple[Sequence[float], Sequence[float]]
) -> nn.Module:
    """`network`, which wants images normalised by `own` (mean, std), for images normalised by `given`."""
    (mean, std), (own_mean, own_std) = (tuple(torch.tensor(v).view(1, -1, 1, 1) for v in pair) for pair in (given, own))
    return Renormalised(network, std / own_std, (mean - own_mean) / own_std)


def bare_network(model: nn.Module) -> nn.Module:
    """What travels of `model`: a foreign network as it came, ours as they are."""
    return model.bare() if isinstance(model, Wrapped | Renormalised) else model


def keep_names(module: nn.Module) -> None:
    """Let the state dict of a module that holds a `network` have the network's own names."""
    module.register_state_dict_post_hook(_strip_prefix)  # type: ignore[no-untyped-call]  # torch's
    module.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]  # torch's


def logits_of(returned: Any) -> Tensor:
    """The class scores in what a network returns: a tensor, a tuple that begins with it, `logits`, a dict's `out`."""
    found = getattr(returned, "logits", returned)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, dict):
        found = found.get("logits", found.get("out"))  # `out`: torchvision's dicts
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError("E_NETWORK_FIT", f"it returned {shape} where class scores N, K were expected")
    return found


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """The network in eval mode, its parameters frozen, and no random number drawn; all is put back."""
    modes = [(module, module.training) for module in network.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval().requires_grad_(False)
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, learns in learning:
            parameter.requires_grad_(learns)


def without_inplace(network: nn.Module) -> nn.Module:
    """An in-place activation would overwrite the map that was read before it."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # a module's attribute may be anything
    return network


def _final_map(calls: list[Call], classifier: str) -> str | None:
    """The last map whose mean over positions enters the classifier; it need not end a stage."""
    pooled = next(call.input for call in reversed(calls) if call.name == classifier)
    assert pooled is not None, "a linear layer is given a tensor"
    pooled = pooled.flatten(1)
    once = [call.name for call in calls]
    for call in reversed(calls):
        is_map = call.output.ndim == 4 and call.output.shape[1] == pooled.shape[1] and once.count(call.name) == 1
        if is_map and call.output.shape[-1] * call.output.shape[-2] > 1:
            return call.name if torch.allclose(call.output.mean(dim=(2, 3)), pooled, rtol=1e-4, atol=1e-5) else None
    return None


def _strip_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    _rename(state, prefix + PREFIX, prefix)


def _add_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, prefix, prefix + PREFIX)


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    """All of them at once: a network may have a `network` of its own, and one name's new form be another's old one."""
    moved = {new + name.removeprefix(old): state.pop(name) for name in list(state) if name.startswith(old)}
    state.update(moved)
