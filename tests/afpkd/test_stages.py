"""Where the stages of a network that is not ours end: found by what it computes, or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.errors import UserError
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Outputs
from afpkd.models.wrapped import Wrapped
from tests.afpkd.networks import SIZE, wrapped


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
    model = wrapped("torchvision:resnet18")
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


class Branched(nn.Module):
    """Two branches at each resolution, added; its stem may be frozen in its own forward."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.frozen, self.stem, self.fc = frozen, nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 5)
        self.left = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(2))
        self.right = nn.ModuleList(nn.Conv2d(8, 8, 1, stride=2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self.stem(x)
        for left, right in zip(self.left, self.right, strict=True):
            x = torch.relu(left(x) + right(x))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("frozen", [False, True])
def test_a_branch_is_no_stage_where_the_forward_hides_its_gradients_either(*, frozen: bool) -> None:
    assert Wrapped(Branched(frozen=frozen), in_channels=3, image_size=SIZE).taps == []
    named = Wrapped(Branched(frozen=frozen), in_channels=3, image_size=SIZE, stages=["stem", "left.1"])
    assert [tap.module for tap in named.taps] == ["stem", "left.1"]


@pytest.mark.parametrize("arch", FAMILIES)
def test_stages_of_many_families_are_found_and_can_be_refined(arch: str) -> None:
    model = wrapped(arch)
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
    model = wrapped("torchvision:resnet18", stages=("layer2", "layer3.0.conv1"))
    assert probe_shapes(model, in_channels=3, image_size=SIZE).channels == [128, 256]
    for name, said in (("layer9", "no module 'layer9'"), ("layer1.0.relu", "called 2 times"), ("fc", "gives no map")):
        with pytest.raises(UserError, match=said):
            wrapped("torchvision:resnet18", stages=(name,))
    for names in (("layer3", "layer2"), ("layer2", "layer2")):
        with pytest.raises(UserError, match=f"name each once, shallow to deep: {', '.join(sorted(set(names)))} "):
            wrapped("torchvision:resnet18", stages=names)


def test_any_size_and_any_shape() -> None:
    for size in ((48, 80), (32, 32), (65, 65)):
        shapes = probe_shapes(wrapped("timm:resnet10t", size), in_channels=3, image_size=size)
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
