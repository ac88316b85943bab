"""Networks of torchvision, timm and users' files as networks of ours."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from afpkd.checkpoint import load_weights, save_weights, state_sha256
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.errors import UserError
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Outputs
from afpkd.models.wrapped import Wrapped, renormalised
from export.inference import logits_only
from export.to_onnx import dry_run_export

SIZE = (64, 64)


def built(arch: str, size: tuple[int, int] = SIZE, **options: Any) -> Wrapped:
    torch.manual_seed(0)
    model = build_model(arch, num_classes=5, in_channels=3, image_size=size, **options)
    assert isinstance(model, Wrapped)
    return model.eval()


class Everything(nn.Module):
    """A network with what makes stages hard to find: branches, a gate, a block's own ReLU used twice, a shortcut."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.idle = nn.Dropout(0.5)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.left, self.right = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.join = nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.Sigmoid())
        self.body = nn.Conv2d(12, 12, 3, padding=1)
        self.end = nn.Identity()
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.idle(x))
        x = self.relu(self.join(torch.cat([self.left(x), self.right(x)], dim=1)))
        x = self.down(x)
        x = self.relu(self.end(x + self.gate(x) * self.body(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def test_stages_end_where_nothing_goes_around() -> None:
    model = Wrapped(Everything(), in_channels=3, image_size=SIZE).eval()
    # `join` is a cut at half the size and its two convolutions are not; `end` at a quarter, `body` and `gate` are not.
    shapes = probe_shapes(model, in_channels=3, image_size=SIZE)
    assert (shapes.channels, shapes.sizes, shapes.pooled) == ([8, 12], [(32, 32), (16, 16)], 12)
    images = torch.randn(2, 3, *SIZE)
    outputs: Outputs = model(images)
    net = model.network
    assert isinstance(net, Everything)
    half = torch.cat([net.left(net.stem(images)), net.right(net.stem(images))], dim=1)
    torch.testing.assert_close(outputs.features[0], half)  # before the ReLU that follows
    assert bool((outputs.features[1] < 0).any())
    torch.testing.assert_close(outputs.logits, net(images))
    assert [name for name, module in net.named_modules() if module._forward_hooks or module._forward_pre_hooks] == []


class Odd(nn.Module):
    """Two stages, then a larger map; or with `tokens` maps whose channels come last, as Swin's do."""

    def __init__(self, *, tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.first: nn.Module = nn.Linear(48, 8) if tokens else conv(3, 8)
        self.second: nn.Module = nn.Linear(8, 6) if tokens else conv(8, 6)
        self.larger, self.fc = nn.Upsample(size=(24, 24)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens:
            x = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)  # N, 16, 16, 48
            x = self.second(self.first(x)[:, ::2, ::2])
            return self.fc(x.mean(dim=(1, 2)))  # type: ignore[no-any-return]
        return self.fc(self.larger(self.second(self.first(x))).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=2, padding=1)


def test_what_grows_again_and_what_has_its_channels_last_are_no_stages() -> None:
    for tokens, sizes in ((False, [(32, 32), (16, 16)]), (True, [])):
        model = Wrapped(Odd(tokens=tokens), in_channels=3, image_size=SIZE)
        assert probe_shapes(model, in_channels=3, image_size=SIZE).sizes == sizes


def test_torchvisions_resnet_is_read_before_the_last_relu_of_each_layer() -> None:
    model = built("torchvision:resnet18")
    images = torch.randn(2, 3, *SIZE)
    seen: list[Tensor] = []
    net: Any = model.network
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        layer[-1].relu.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    outputs: Outputs = model(images)
    for feature, expected in zip(outputs.features, seen[1::2], strict=True):  # a block's second ReLU
        assert torch.equal(feature, expected)
    x = net.maxpool(torch.relu(net.bn1(net.conv1(images))))
    assert torch.equal(outputs.final, net.layer4(net.layer3(net.layer2(net.layer1(x)))))
    torch.testing.assert_close(outputs.final.mean(dim=(2, 3)), outputs.pooled)


class Negated:
    """A `refine` that negates one level."""

    def __init__(self, level: int) -> None:
        self.level = level

    def __call__(self, level: int, feature: Tensor) -> Tensor:
        return -feature if level == self.level else feature


FAMILIES = {
    "torchvision:resnet18": [64, 128, 256, 512],
    "torchvision:mobilenet_v2": [24, 32, 96, 1280],
    "torchvision:shufflenet_v2_x0_5": [24, 48, 96, 1024],
    "torchvision:regnet_y_400mf": [48, 104, 208, 440],
    "torchvision:densenet121": [256, 512, 1024, 1024],
    "timm:efficientnet_lite0": [24, 40, 112, 1280],
    "timm:mobilenetv4_conv_small": [32, 64, 96, 960],
    "timm:convnext_atto": [40, 80, 160, 320],
    "timm:ghostnet_100": [24, 40, 112, 960],
}
"""Channels of the stages at strides 4, 8, 16 and 32: those of the papers, the last with the widening convolution."""


@pytest.mark.parametrize("arch", FAMILIES)
def test_stages_of_many_families_are_found_and_can_be_refined(arch: str) -> None:
    model = built(arch)
    shapes = probe_shapes(model, in_channels=3, image_size=SIZE)
    assert shapes.channels == FAMILIES[arch]
    assert shapes.sizes == [(16, 16), (8, 8), (4, 4), (2, 2)]
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        clean: Outputs = model(images)
        assert torch.equal(clean.classifier(clean.pooled), clean.logits)
        torch.testing.assert_close(clean.logits, model.network(images), rtol=1e-4, atol=1e-5)
        for chosen in range(4):
            refined: Outputs = model(images, Negated(chosen))
            torch.testing.assert_close(refined.features[chosen], -clean.features[chosen])
            assert not torch.allclose(refined.logits, clean.logits, rtol=1e-4, atol=0)
        again: Outputs = model(images)
        assert torch.equal(again.logits, clean.logits)  # nothing of the refinement stays


def test_stages_can_be_named(tmp_path: Path) -> None:
    model = built("torchvision:resnet18", stages=("layer2", "layer3.0.conv1"))
    assert probe_shapes(model, in_channels=3, image_size=SIZE).channels == [128, 256]
    for name, said in (("layer9", "no module 'layer9'"), ("layer1.0.relu", "called 2 times"), ("fc", "gives no map")):
        with pytest.raises(UserError, match=said):
            built("torchvision:resnet18", stages=(name,))


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


def test_any_size_and_any_shape() -> None:
    for size in ((48, 80), (32, 32), (65, 65)):
        shapes = probe_shapes(built("timm:resnet10t", size), in_channels=3, image_size=size)
        assert shapes.channels[-1] in (256, 512)
        assert len(shapes.sizes) >= 3


def test_a_transformer_has_no_maps_and_says_so_where_maps_are_imitated() -> None:
    teacher = build_model("timm:vit_tiny_patch16_224", num_classes=5, in_channels=3, image_size=(224, 224))
    shapes = probe_shapes(teacher, in_channels=3, image_size=(224, 224))
    assert (shapes.channels, shapes.pooled) == ([], 192)
    student = probe_shapes(build_model("resnet8", num_classes=5, in_channels=3), in_channels=3, image_size=(224, 224))
    for method in ("reviewkd", "freekd", "afpkd"):
        with pytest.raises(UserError, match=f"{method} imitates feature maps, and the teacher has none"):
            build_distiller(method, student, shapes)
    logits = torch.randn(2, 5)
    distiller = build_distiller("kd", student, shapes, **vars(OPTIONS["kd"]()))
    outputs = Outputs(logits, [], torch.zeros(2, 1), torch.zeros(2, 1, 1, 1), nn.Linear(1, 1))
    assert distiller(outputs, outputs._replace(logits=-logits), torch.zeros(2).long(), 1.0)["kd"] > 0
    with pytest.raises(UserError, match="its class maps are its logits"):
        build_distiller("catkd", student, shapes, **vars(OPTIONS["catkd"]()))(outputs, outputs, logits, 1.0)


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("timm:resnet10", "unknown timm model 'resnet10'"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19': did you mean 'resnet18'?"),
        ("torchvision:squeezenet1_1", "not the output of an nn.Linear"),
        ("timm:vit_tiny_patch16_224", r"on images of 3x64x64: .*doesn't match model \(224\)"),
    ],
)
def test_what_cannot_be_used_is_one_line(arch: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        built(arch)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_weights_keep_the_networks_own_names(tmp_path: Path) -> None:
    ours = built("torchvision:resnet18")
    theirs = torchvision.models.resnet18(num_classes=5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    assert "loaded 122 of 122" in load_weights(ours, tmp_path / "theirs.pt")
    assert state_sha256(ours) == state_sha256(theirs)
    save_weights(tmp_path / "ours.safetensors", nn.ModuleDict({"student": ours}).state_dict())
    saved = load_file(tmp_path / "ours.safetensors")
    assert {name.removeprefix("student.") for name in saved} == theirs.state_dict().keys()
    holder = nn.ModuleDict({"student": built("torchvision:resnet18")})
    holder.load_state_dict(saved)
    assert state_sha256(holder["student"]) == state_sha256(theirs)


def test_a_network_for_other_classes_gives_all_but_its_last_layer(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=9).state_dict(), tmp_path / "nine.pt")
    model = built("torchvision:resnet18")
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
    network = built("torchvision:resnet18")
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
    model = built("timm:mobilenetv4_conv_small")
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
    model = built(f"{tmp_path / 'net.py'}:make")
    assert [tap.module for tap in model.taps] == ["a.2", "b.2"]
    assert model(torch.randn(2, 3, *SIZE)).logits.shape == (2, 5)
    told = r"it knows 9 classes, the data 5: let its function take num_classes \[E_NETWORK_FIT\]$"
    with pytest.raises(UserError, match=told):
        built(f"{tmp_path / 'net.py'}:fixed")


OFFLINE = """
import logging, sys, urllib.request
from afpkd.models import build_model
from afpkd.errors import UserError
try:
    build_model(sys.argv[1], num_classes=5, in_channels=3, image_size=(64, 64), published=True)
except UserError as error:
    print(error)
logging.getLogger("huggingface_hub.utils").warning("Retrying in 8s")
"""


@pytest.mark.parametrize("arch", ["timm:resnet10t", "torchvision:shufflenet_v2_x0_5"])
def test_published_weights_that_cannot_be_fetched_are_one_line(arch: str, tmp_path: Path) -> None:
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    home = {"HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", **nowhere, **home}
    command = [sys.executable, "-W", "ignore", "-c", OFFLINE, arch]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith(
        f"{arch}: weights = 'default': its published weights are not here and cannot be fetched"
    )
    assert done.stdout.endswith("[E_WEIGHTS_PUBLISHED]\n")
    assert len(done.stdout.splitlines()) == 1
    assert ("Retrying" in done.stderr) == (not arch.startswith("timm"))  # one try after the other says nothing


def test_published_weights_for_other_classes_and_grey_images(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)

    def fetched(name: str, weights: str) -> nn.Module:
        assert (name, weights) == ("shufflenet_v2_x0_5", "DEFAULT")
        made: nn.Module = copy.deepcopy(published)
        return made

    monkeypatch.setattr(torchvision.models, "get_model", fetched)
    first = published.conv1[0].weight.detach().clone()
    model = build_model("torchvision:shufflenet_v2_x0_5", num_classes=5, in_channels=1, image_size=SIZE, published=True)
    assert torch.equal(model.state_dict()["conv1.0.weight"], first.sum(dim=1, keepdim=True))
    assert model(torch.randn(2, 1, *SIZE)).logits.shape == (2, 5)
