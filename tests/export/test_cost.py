from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from afpkd.models import build_model
from export.cost import macs_of

if TYPE_CHECKING:
    from tests.export.conftest import TinyNet


class Outputs:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class MultipliesByHand(nn.Module):
    """A linear layer in disguise: torch's counter sees a matrix product, fvcore no `linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(192, 10))

    def forward(self, x: Tensor) -> Outputs:
        return Outputs(x.flatten(1) @ self.weight)


class ConvolvesItself(nn.Module):
    """A convolution that no module holds, beside one that a module does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.weight = nn.Parameter(torch.ones(5, 4, 8, 8))

    def forward(self, x: Tensor) -> Outputs:
        return Outputs(nn.functional.conv2d(self.stem(x), self.weight).flatten(1))


def by_formula(model: nn.Module, image: Tensor) -> int:
    """MACs from the layers' own shapes while they run: output elements x multiplications for one of them."""
    total = 0

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * weight[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval()(image)
    for hook in hooks:
        hook.remove()
    return total


def test_tiny_net_by_hand(net: TinyNet, example: Tensor) -> None:
    conv, linear = 4 * 8 * 8 * 27, 64 * 5
    assert macs_of(net, example) == {
        "num_params": 4 * 27 + 2 * 4 + 64 * 5 + 5,
        "macs": conv + linear,
        "fvcore": conv + linear,
        "torch": conv + linear,
        "agree": True,
        "note": None,
        "by_layer": {"conv": conv, "fc": linear},
        "excluded_ops": {"batch_norm": 2 * 4 * 8 * 8},
        "unsupported_ops": {"aten::avg_pool2d": 1},
    }


def test_resnet20_has_the_literatures_macs() -> None:
    found = macs_of(build_model("resnet20", num_classes=100, in_channels=3), torch.zeros(1, 3, 32, 32))
    assert found["macs"] == found["torch"] == 40_818_944  # 40.819 M
    assert sum(found["by_layer"].values()) == found["macs"]
    assert found["num_params"] == 278_324


@pytest.mark.parametrize(("arch", "channels", "side"), [("resnet8", 1, 28), ("resnet8x4", 3, 32)])
def test_macs_equal_the_layers_formula(arch: str, channels: int, side: int) -> None:
    model, image = build_model(arch, num_classes=10, in_channels=channels), torch.zeros(1, channels, side, side)
    found = macs_of(model, image)
    assert found["macs"] == found["torch"] == by_formula(model, image)


def test_the_batch_does_not_count(net: TinyNet) -> None:
    assert macs_of(net, torch.zeros(9, 3, 8, 8)) == macs_of(net, torch.zeros(1, 3, 8, 8))


def test_a_difference_is_shown(example: Tensor) -> None:
    found = macs_of(MultipliesByHand(), example)
    assert (found["fvcore"], found["torch"], found["agree"]) == (0, 1920, False)
    assert found["note"] == "fvcore counts 0 MACs, torch's flop counter / 2 gives 1,920"
    assert found["excluded_ops"] == {"matmul": 1920}


def test_what_no_layer_does_belongs_to_the_network_itself(example: Tensor) -> None:
    found = macs_of(ConvolvesItself(), example)
    assert found["by_layer"] == {"": 5 * 4 * 64, "stem": 64 * 12}
    assert found["agree"]


def test_the_model_stays_as_it_is(net: TinyNet, example: Tensor) -> None:
    before = copy.deepcopy(net.state_dict())
    macs_of(net, example)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
