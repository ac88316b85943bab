"""Networks of torchvision, timm and users' files as networks of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from afpkd.checkpoint import (
    copied_state,
    load_training_state,
    load_weights,
    save_training_state,
    save_weights,
    state_sha256,
)
from afpkd.distillers.catkd import class_maps
from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.models.outputs import Outputs
from afpkd.models.wrapped import renormalised
from export.inference import logits_only
from export.to_onnx import dry_run_export
from tests.afpkd.networks import SIZE, wrapped


def test_a_new_network_is_ready_to_learn_and_draws_what_it_draws_alone() -> None:
    torch.manual_seed(0)
    model = build_model("torchvision:resnet18", num_classes=5, in_channels=3, image_size=SIZE)
    drawn = torch.rand(3)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    torch.manual_seed(0)
    alone = torchvision.models.resnet18(num_classes=5)
    assert state_sha256(model) == state_sha256(alone)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("timm:resnet10", "unknown timm model 'resnet10'"),
        ("timm:resnet18.a4_in1k", r"unknown timm model 'resnet18\.a4_in1k': did you mean 'resnet18\.a\d_in1k'\?"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19': did you mean 'resnet18'?"),
        ("torchvision:squeezenet1_1", "not the output of an nn.Linear"),
        ("timm:vit_tiny_patch16_224", r"on images of 3x64x64: .*doesn't match model \(224\)"),
    ],
)
def test_what_cannot_be_used_is_one_line(arch: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        wrapped(arch)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_without_timm_its_networks_say_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm:NAME needs timm: .*pip install --editable '\.\[timm\]' in this program"):
        wrapped("timm:resnet10t")


def test_weights_keep_the_networks_own_names(tmp_path: Path) -> None:
    ours = wrapped("torchvision:resnet18")
    theirs = torchvision.models.resnet18(num_classes=5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    assert "loaded 122 of 122" in load_weights(ours, tmp_path / "theirs.pt")
    assert state_sha256(ours) == state_sha256(theirs)
    save_weights(tmp_path / "ours.safetensors", nn.ModuleDict({"student": ours}).state_dict())
    saved = load_file(tmp_path / "ours.safetensors")
    assert {name.removeprefix("student.") for name in saved} == theirs.state_dict().keys()
    holder = nn.ModuleDict({"student": wrapped("torchvision:resnet18")})
    holder.load_state_dict(saved)
    assert state_sha256(holder["student"]) == state_sha256(theirs)


HOLDERS = {
    "network, then fc": "self.network, self.fc = net(6), nn.Linear(6, num_classes)",
    "fc, then network": "self.fc, self.network = nn.Linear(6, num_classes), net(6)",
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_network_may_have_a_part_called_network(holder: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from collections import OrderedDict\nfrom torch import nn\n"
        "def net(k):\n    return nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3, 2), b=nn.ReLU(), "
        "c=nn.Conv2d(4, 8, 3, 2), d=nn.ReLU(), e=nn.AdaptiveAvgPool2d(1), f=nn.Flatten(), fc=nn.Linear(8, k)))\n"
        "class Net(nn.Module):\n    def __init__(self, num_classes):\n        super().__init__()\n"
        f"        {HOLDERS[holder]}\n    def forward(self, x):\n        return self.fc(self.network(x))\n"
    )
    model, other = (wrapped(f"{tmp_path / 'net.py'}:Net") for _ in range(2))
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    theirs = model.network.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    save_weights(tmp_path / "w.safetensors", model.state_dict())
    load_weights(other, tmp_path / "w.safetensors")
    assert state_sha256(other.network) == state_sha256(model.network)


def test_a_network_that_asks_for_the_version_of_its_weights_gets_it(tmp_path: Path) -> None:
    """Of what a training chose, where it was stopped too, and of a file: torchvision's MNASNet wants it."""
    model, other = wrapped("torchvision:mnasnet0_5"), wrapped("torchvision:mnasnet0_5")
    other.load_state_dict(copied_state(model))
    save_training_state(tmp_path / "state.pt", {"digest": "d", "best_state": copied_state(model)})
    again = load_training_state(tmp_path / "state.pt", "d")
    assert again is not None
    other.load_state_dict(again["best_state"])
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    save_weights(tmp_path / "w.safetensors", model.state_dict())
    load_weights(other, tmp_path / "w.safetensors")
    assert state_sha256(other) == state_sha256(model)


def test_a_network_for_other_classes_gives_all_but_its_last_layer(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=9).state_dict(), tmp_path / "nine.pt")
    model = wrapped("torchvision:resnet18")
    before = model.state_dict()["fc.weight"].clone()
    with pytest.raises(UserError, match=r"fc\.bias is 9, expected 5"):
        load_weights(model, tmp_path / "nine.pt")
    said = load_weights(model, tmp_path / "nine.pt", new_classes=5)
    assert "(fc.bias starts anew) (fc.weight starts anew)" in said
    assert torch.equal(model.state_dict()["fc.weight"], before)
    assert torch.equal(model.state_dict()["conv1.weight"], torch.load(tmp_path / "nine.pt")["conv1.weight"])
    narrow = torchvision.models.resnet18(num_classes=9).state_dict() | {"fc.weight": torch.zeros(9, 40)}
    torch.save(narrow, tmp_path / "narrow.pt")
    with pytest.raises(UserError, match=r"fc\.weight is 9x40, expected 5x512"):
        load_weights(model, tmp_path / "narrow.pt", new_classes=5)
    torch.save(torchvision.models.resnet34(num_classes=9).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not fit"):
        load_weights(model, tmp_path / "other.pt", new_classes=5)


def test_another_normalisation_gives_what_the_network_would_say_of_its_own() -> None:
    network = wrapped("torchvision:resnet18")
    pixels = torch.rand(2, 3, *SIZE)
    given, own = ((0.3, 0.4, 0.5), (0.2, 0.25, 0.3)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def normalised(by: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in by)
        return (pixels - mean) / std

    with torch.no_grad():
        expected: Outputs = network(normalised(own))
        model = renormalised(network, given, own).eval()
        torch.testing.assert_close(model(normalised(given)).logits, expected.logits, rtol=1e-4, atol=1e-4)
        exported = logits_only(model)(normalised(given))
        torch.testing.assert_close(exported, expected.logits, rtol=1e-4, atol=1e-4)
    assert model.state_dict().keys() == network.state_dict().keys()


def test_grey_images_reach_a_network_for_colour() -> None:
    model = build_model("torchvision:shufflenet_v2_x0_5", num_classes=5, in_channels=1, image_size=SIZE)
    assert model(torch.randn(2, 1, *SIZE)).logits.shape == (2, 5)


def test_the_bare_network_is_exported(tmp_path: Path) -> None:
    model = wrapped("timm:mobilenetv4_conv_small")
    dry_run_export(model, torch.zeros(1, 3, *SIZE))
    assert set(logits_only(model).state_dict()) == {f"model.{name}" for name in model.state_dict()}


FILE = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.head = nn.Linear(16, num_classes)
    def forward(self, x):
        return {"logits": self.head(self.b(self.a(x)).mean((2, 3)))}
def make(num_classes, in_channels=3):
    return Net(num_classes, in_channels)
def fixed():
    return Net(9, 3)
"""


def test_a_users_file_makes_a_network(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FILE)
    model = wrapped(f"{tmp_path / 'net.py'}:make")
    assert [tap.module for tap in model.taps] == ["a.2", "b.2"]
    assert model(torch.randn(2, 3, *SIZE)).logits.shape == (2, 5)
    told = r"it knows 9 classes, the data 5: let its function take num_classes \[E_NETWORK_FIT\]$"
    with pytest.raises(UserError, match=told):
        wrapped(f"{tmp_path / 'net.py'}:fixed")


@pytest.mark.parametrize("given", ['{"out": X}', '{"logits": X, "out": x}', "(X, x)", "SimpleNamespace(logits=X)"])
def test_class_scores_are_found_in_what_a_network_returns_and_exported(given: str, tmp_path: Path) -> None:
    own = FILE.replace('{"logits": self.head', "self.head").replace(".mean((2, 3)))}", ".mean((2, 3)))")
    scores = "self.head(self.b(self.a(x)).mean((2, 3)))"
    (tmp_path / "net.py").write_text(
        "from types import SimpleNamespace" + own.replace(scores, given.replace("X", scores))
    )
    model = wrapped(f"{tmp_path / 'net.py'}:make").eval()
    images = torch.randn(2, 3, *SIZE)
    network: Any = model.network
    with torch.no_grad():
        expected = network.head(network.b(network.a(images)).mean((2, 3)))
        assert torch.equal(model(images).logits, expected)
        assert torch.equal(logits_only(model)(images), expected)


def test_a_classifier_that_is_a_convolution_of_the_pooled_map_is_a_linear_layer() -> None:
    model = wrapped("timm:dla46_c").eval()
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        found = model(images)
        assert torch.equal(found.logits, model.network(images))
        convolution = model.network.get_submodule("fc")
        assert isinstance(convolution, nn.Conv2d)
        scores = F.linear(found.pooled, convolution.weight[:, :, 0, 0], convolution.bias)
        torch.testing.assert_close(scores, found.logits, rtol=1e-4, atol=1e-5)  # summed in the processor's order
        torch.testing.assert_close(found.final.mean((2, 3)), found.pooled)
        torch.testing.assert_close(class_maps(found).mean((2, 3)), found.logits, rtol=1e-4, atol=1e-5)
        assert [feature.ndim for feature in found.imitated()] == [4] * (len(found.features) + 1)


def test_a_convolution_that_skips_positions_is_no_classifier(tmp_path: Path) -> None:
    layers = "nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, num_classes, 1, stride=32), nn.Flatten()"
    (tmp_path / "net.py").write_text(
        f"from torch import nn\ndef make(num_classes):\n    return nn.Sequential({layers})\n"
    )
    with pytest.raises(UserError, match=r"not the output of an nn\.Linear"):
        wrapped(f"{tmp_path / 'net.py'}:make")


def test_an_error_that_says_nothing_shows_its_code() -> None:
    with pytest.raises(UserError, match=r"on images of 3x64x64: AssertionError \(_assert\(.+\) \[E_NETWORK_FIT\]$"):
        wrapped("timm:botnet26t_256")
