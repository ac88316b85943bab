"""Networks that are not ours: `timm:NAME`, `torchvision:NAME`, `FILE.py:FUNCTION`, each as a network of ours.

They start at random, or from the weights that their library publishes, which it downloads where they are not yet here.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from afpkd.errors import UserError, install
from afpkd.models.user_file import cause_of, is_user_file, model_from_file
from afpkd.models.wrapped import Wrapped, at_rest, logits_of, without_inplace
from afpkd.names import look_up, unknown

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel of pixel / 255."""

_INCEPTIONS = ("googlenet", "inception_v3")
"""Torchvision's bring images to mean and deviation 0.5, which their weights want, in their forward where these were
published, and not without: the same tensors would be two networks, and a run reads its weights back into the second."""

_MOST_APART = 1e-2
"""Part of the largest class score: the order of sums, another for a batch, moves it by far less."""


def foreign_model(
    arch: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    stages: tuple[str, ...] = (),
    published: bool = False,
) -> nn.Module:
    """Build `arch`. UserError: unknown, another number of classes, no weights to be had, no image of this size.

    published: start from the library's weights; where its number of classes is another, the last layer starts anew.
    A user's function may return a network that gives `Outputs` and takes `refine` itself: it is used as it is.
    """
    kind = "file" if is_user_file(arch) else arch.partition(":")[0]
    network = look_up("E_NETWORK_NAME", "library", kind, _BUILDERS)(arch, num_classes, in_channels, published)
    try:
        made = _as_ours(network, num_classes, in_channels, image_size, stages)
        if kind == "file":
            _require_lone_answers(network, in_channels, image_size)
    except Exception as error:  # whatever a stranger's forward raises
        told = error.message if isinstance(error, UserError) else ""
        cause = told or cause_of(error)
        size = "x".join(map(str, image_size))
        raise UserError("E_NETWORK_FIT", f"{arch}, on images of {in_channels}x{size}: {cause[:300]}") from error
    return made


def _as_ours(
    network: nn.Module, num_classes: int, in_channels: int, image_size: tuple[int, int], stages: tuple[str, ...]
) -> nn.Module:
    mode = network.training
    with torch.enable_grad():
        returned = network.eval()(torch.zeros(1, in_channels, *image_size))
    network.train(mode)
    _require_copyable(network)
    num = logits_of(returned).shape[1]
    if num != num_classes:
        raise UserError(
            "E_NETWORK_FIT", f"it knows {num} classes, the data {num_classes}: let its function take num_classes"
        )
    if hasattr(returned, "features") and hasattr(returned, "classifier"):
        if stages:
            raise UserError("E_NETWORK_FIT", "it returns features of its own: leave `stages` out")
        if "refine" not in inspect.signature(network.forward).parameters:
            told = "it returns features of its own, and its forward takes no `refine`, by which prompts act on them"
            raise UserError("E_NETWORK_FIT", f"{told}: let it take one, or return the logits alone")
        return without_inplace(network)
    return Wrapped(network, in_channels=in_channels, image_size=image_size, stages=stages)


def _require_copyable(network: nn.Module) -> None:
    """UserError where a forward pass left a tensor of the graph on a module: torch copies no such network."""
    for name, module in network.named_modules():
        for key, value in (*vars(module).items(), *module.named_buffers(recurse=False)):
            kept = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            if any(isinstance(each, torch.Tensor) and each.grad_fn is not None for each in kept):
                attribute = f"{name}.{key}" if name else key
                told = f"its forward keeps a map on itself, '{attribute}', so that it cannot be copied for export"
                raise UserError("E_NETWORK_FIT", f"{told}: return the map, or keep `map.detach()`")


def _require_lone_answers(network: nn.Module, in_channels: int, image_size: tuple[int, int]) -> None:
    """UserError where an image's answer hangs on those beside it: it is scored among hundreds, and asked for alone.

    The images lie in memory as in training, channels last, which `view` may refuse: an error of torch's.
    """
    images = torch.linspace(-1, 1, 2 * in_channels * image_size[0] * image_size[1]).view(2, in_channels, *image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    with at_rest(network), torch.no_grad():
        together, alone = (logits_of(network(given))[0] for given in (images, images[:1]))
    if float((together - alone).abs().max()) > _MOST_APART * float(alone.abs().max()):
        told = "it answers an image otherwise beside another one, or each time"
        mend = (
            "let its forward treat images one by one, BatchNorm keep its statistics, and nothing be drawn in eval mode"
        )
        raise UserError("E_NETWORK_FIT", f"{told}: {mend}")


def published_normalisation(arch: str) -> Normalisation:
    """What the weights that a library publishes under `arch` want to see. UserError: unknown, none published."""
    return _published(arch)[0]


def require_published_classes(arch: str, num_classes: int) -> None:
    """UserError where those weights tell another number of classes apart: the last layer would start at random."""
    _, num = _published(arch)
    if num != num_classes:
        told = f"{arch}: weights = 'default' know {num} classes, the data have {num_classes}"
        raise UserError("E_NETWORK_FIT", f"{told}: the last layer starts at random: train it, teacher.epochs = 30")


def _published(arch: str) -> tuple[Normalisation, int]:
    """(normalisation, number of classes) of a library's weights, without fetching them."""
    kind = arch.partition(":")[0]
    if kind == "timm":
        found = timm_library().get_pretrained_cfg(_timm_name(arch))
        return (tuple(found.mean), tuple(found.std)), found.num_classes
    if kind == "torchvision":
        import torchvision

        name = _torchvision_name(arch)
        weights = torchvision.models.get_model_weights(name).DEFAULT
        transforms, num = weights.transforms(), len(weights.meta["categories"])
        half = (0.5, 0.5, 0.5)
        return (half, half) if name in _INCEPTIONS else (tuple(transforms.mean), tuple(transforms.std)), num
    raise UserError(
        "E_WEIGHTS_PUBLISHED", f"{arch}: weights = 'default': timm and torchvision publish weights: name a file"
    )


def _from_timm(arch: str, num_classes: int, in_channels: int, published: bool) -> nn.Module:
    timm, name = timm_library(), _timm_name(arch)
    options = {"num_classes": num_classes, "in_chans": in_channels}
    return _downloaded(arch, published, lambda: timm.create_model(name, pretrained=published, **options))


def _from_torchvision(arch: str, num_classes: int, in_channels: int, published: bool) -> nn.Module:
    import torchvision

    name, models = _torchvision_name(arch), torchvision.models
    if not published:
        parts = {"init_weights": True, "aux_logits": False} if name in _INCEPTIONS else {}
        network: Any = models.get_model(name, weights=None, num_classes=num_classes, **parts)
    else:
        network = _downloaded(arch, True, lambda: models.get_model(name, weights="DEFAULT"))
        if name in _INCEPTIONS:
            network.transform_input = network.aux_logits = False
            network.AuxLogits = None
        _replace_last_linear(arch, network, num_classes)
    _replace_first_convolution(network, in_channels)
    made: nn.Module = network
    return made


def _from_file(arch: str, num_classes: int, in_channels: int, published: bool) -> nn.Module:
    if published:
        published_normalisation(arch)  # says that there is none
    return model_from_file(arch, num_classes=num_classes, in_channels=in_channels)


_BUILDERS: dict[str, Callable[[str, int, int, bool], nn.Module]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "file": _from_file,
}


def _timm_name(arch: str) -> str:
    """NAME or NAME.TAG of `timm:`; the tag says which of several published weights."""
    timm, name = timm_library(), arch.partition(":")[2]
    if not timm.is_model(name):
        raise UserError("E_NETWORK_NAME", unknown("timm model", name, timm.list_models()))
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # the model has no such tag
        model = name.partition(".")[0]
        raise UserError("E_NETWORK_NAME", unknown("timm model", name, timm.list_pretrained(f"{model}.*"))) from None
    return name


def _torchvision_name(arch: str) -> str:
    import torchvision

    name, known = arch.partition(":")[2], torchvision.models.list_models(torchvision.models)  # detectors: submodules
    if name not in known:
        raise UserError("E_NETWORK_NAME", unknown("torchvision model", name, known))
    return name


def timm_library() -> Any:
    """timm, silent about each try to fetch weights, since what comes of them is one line. UserError without it."""
    try:
        import timm
    except ImportError:
        raise UserError("E_PACKAGE", f"timm:NAME needs timm: {install('timm')} in this program's folder") from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return timm


def _downloaded(arch: str, published: bool, make: Callable[[], Any]) -> nn.Module:
    """Build quietly; where the library cannot fetch its weights, say so in one line."""
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sys.stderr),
        ):  # torchvision announces a download there
            warnings.simplefilter("ignore")  # of layers that a library builds in an old way
            made: nn.Module = make()
    except Exception as error:  # each library, and each of its download clients, raises errors of its own
        if not published:
            raise
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            "E_WEIGHTS_PUBLISHED",
            f"{arch}: weights = 'default': its published weights are not here and cannot be fetched ({cause[:120]}): "
            "connect, or name a file, or weights = 'none'",
        ) from None
    return made


def _replace_last_linear(arch: str, network: nn.Module, num_classes: int) -> None:
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        told = "its class scores are not the output of an nn.Linear, which distillation needs to know"
        raise UserError("E_NETWORK_FIT", f"{arch}: {told}: take another network")
    name, last = layers[-1]
    if last.out_features != num_classes:
        _put(network, name, nn.Linear(last.in_features, num_classes, bias=last.bias is not None))


def _replace_first_convolution(network: nn.Module, in_channels: int) -> None:
    """Grey images: the published filters of red, green and blue are added up."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == in_channels:
        return
    made = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]  # of two sides, which torch types as any number
        first.stride,  # type: ignore[arg-type]  # the same
        first.padding,  # type: ignore[arg-type]  # the same
        bias=first.bias is not None,
    )
    with torch.no_grad():
        made.weight.copy_(first.weight.sum(dim=1, keepdim=True).expand_as(made.weight) / in_channels)
        if first.bias is not None and made.bias is not None:
            made.bias.copy_(first.bias)
    _put(network, name, made)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
