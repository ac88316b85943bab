"""The zoo against other implementations with equal weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchdistill.models.classification.wide_resnet import WideBasicBlock, WideResNet4Cifar

from tests.afpkd.networks import MOBILE, built


def wide_resnet_elsewhere() -> Any:
    return WideResNet4Cifar(16, 2, 0.0, WideBasicBlock, num_classes=100)


def vgg_elsewhere() -> Any:
    layers = [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, 512, 512]
    features = torchvision.models.vgg.make_layers(layers, batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100))


def mobilenet_elsewhere() -> Any:
    """Its ReLU6 is a ReLU here: nothing exceeds 6."""
    net = torchvision.models.MobileNetV2(100, 0.5, MOBILE, round_nearest=1)
    net.features[1] = nn.Sequential(torchvision.ops.Conv2dNormActivation(16, 16, kernel_size=1), net.features[1])
    return net


def shufflenet_elsewhere() -> Any:
    net = torchvision.models.shufflenet_v2_x1_0(num_classes=100)
    net.conv1[0], net.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    return net


def resnet18_elsewhere() -> Any:
    net = torchvision.models.resnet18(num_classes=100)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def resnet50_elsewhere() -> Any:
    net = torchvision.models.resnet50(num_classes=100)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


ELSEWHERE = {
    **{"wrn-16-2": wide_resnet_elsewhere, "vgg13": vgg_elsewhere, "mobilenetv2": mobilenet_elsewhere},
    **{"shufflenetv2": shufflenet_elsewhere, "resnet18": resnet18_elsewhere, "resnet50": resnet50_elsewhere},
}
"""torchvision's and torchdistill's networks, with the benchmark's stem and strides."""


@pytest.mark.parametrize("arch", ELSEWHERE)
def test_logits_equal_those_of_another_implementation(arch: str) -> None:
    torch.manual_seed(0)
    theirs, ours, images = ELSEWHERE[arch](), built(arch), torch.randn(4, 3, 32, 32)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1) / 2, std=0.1)
    theirs(images)  # moves the running statistics
    state = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)  # layers come in the same order
    ours.load_state_dict(dict(state))
    for block in theirs.modules():  # the original (and the benchmark) rectify what is projected, torchdistill does not
        if isinstance(block, WideBasicBlock) and len(block.shortcut):
            block.shortcut = nn.Sequential(block.bn1, nn.ReLU(), block.shortcut[0])
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs.eval()(images), rtol=1e-4, atol=1e-5)
