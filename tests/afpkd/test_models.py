"""The zoo against published sizes and the papers' tables in arithmetic; its exported files against torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from afpkd.models import MODELS, probe_shapes
from afpkd.models.outputs import Outputs
from afpkd.models.shufflenet_v1 import shuffled
from export.cost import macs_of
from export.to_onnx import onnx_from_model
from tests.afpkd.networks import MOBILE, built

NARROW = ([(16, 32), (32, 16), (64, 8)], 64)
WIDE = ([(32, 32), (64, 16), (128, 8)], 128)
WIDEST = ([(64, 32), (128, 16), (256, 8)], 256)
VGG = ([(128, 16), (256, 8), (512, 4), (512, 4)], 512)
SHAPES: dict[str, tuple[list[tuple[int, int]], int]] = {
    **dict.fromkeys(("resnet8", "resnet20", "resnet32", "resnet56", "resnet110", "wrn-40-1"), NARROW),
    **dict.fromkeys(("resnet8x4", "resnet32x4"), WIDEST),
    **dict.fromkeys(("wrn-16-2", "wrn-40-2"), WIDE),
    **dict.fromkeys(("vgg8", "vgg13"), VGG),
    "resnet18": ([(64, 32), (128, 16), (256, 8), (512, 4)], 512),
    "resnet50": ([(256, 32), (512, 16), (1024, 8), (2048, 4)], 2048),
    "mobilenetv2": ([(12, 16), (16, 8), (48, 4), (160, 2)], 1280),
    "shufflenetv1": ([(240, 16), (480, 8), (960, 4)], 960),
    "shufflenetv2": ([(116, 16), (232, 8), (464, 4)], 1024),
}
"""Channels and side of each feature of a 32x32 image, and the pooled vector: those of ReviewKD and mdistiller."""

MILLIONS = {
    **{"resnet20": 0.28, "resnet56": 0.86, "resnet110": 1.74, "resnet8x4": 1.23, "resnet32x4": 7.43, "resnet50": 23.71},
    **{"resnet18": 11.22, "wrn-40-2": 2.26, "wrn-16-2": 0.70, "wrn-40-1": 0.57, "vgg13": 9.46, "vgg8": 3.97},
    **{"mobilenetv2": 0.81, "shufflenetv1": 0.95, "shufflenetv2": 1.36},
}
"""Parameters of the 100-class networks as papers on the CRD benchmark round them."""

FOR_TEN_CLASSES = {
    "resnet8": (0.08, 12.50),
    "resnet20": (0.27, 40.81),
    "resnet32": (0.47, 69.12),
    "resnet56": (0.86, 125.75),
    "resnet110": (1.73, 253.15),
}
"""Millions of parameters and of MACs for CIFAR-10: D-X-Y/AutoDL-Projects, docs/BASELINE.md."""

Counts = Iterator[tuple[int, int]]
"""(parameters, MACs) layer by layer."""


def conv(before: int, channels: int, kernel: int, side: int, groups: int = 1, others: int = 2) -> tuple[int, int]:
    """A convolution that gives side x side pixels; `others`: parameters a channel beside its weights (2: a norm)."""
    weights = channels * before // groups * kernel**2
    return weights + others * channels, weights * side**2


def linear(before: int) -> tuple[int, int]:
    return 100 * before + 100, 100 * before


def resnet(depth: int, stem: int, widening: int, *, norm_of_projection: int = 2) -> Counts:
    """Basic blocks; a pre-activation block has its norms elsewhere, but as many, none of them the projection's."""
    yield conv(3, stem, 3, 32)
    before = stem
    for width, side in ((16 * widening, 32), (32 * widening, 16), (64 * widening, 8)):
        if before != width:
            yield conv(before, width, 1, side, others=norm_of_projection)
        for _ in range((depth - 2) // 6):
            yield from (conv(before, width, 3, side), conv(width, width, 3, side))
            before = width
    yield linear(before)


def resnet18() -> Counts:
    yield conv(3, 64, 3, 32)
    before = 64
    for width, side in ((64, 32), (128, 16), (256, 8), (512, 4)):
        if before != width:
            yield conv(before, width, 1, side)
        for _ in range(2):
            yield from (conv(before, width, 3, side), conv(width, width, 3, side))
            before = width
    yield linear(512)


def resnet50() -> Counts:
    yield conv(3, 64, 3, 32)
    before, side_before = 64, 32
    for width, blocks, side in ((64, 3, 32), (128, 4, 16), (256, 6, 8), (512, 3, 4)):
        yield conv(before, 4 * width, 1, side)
        for _ in range(blocks):
            yield from (conv(before, width, 1, side_before), conv(width, width, 3, side))
            yield conv(width, 4 * width, 1, side)
            before, side_before = 4 * width, side
    yield linear(2048)


def vgg(convs: int) -> Counts:
    before = 3
    for width, side in ((64, 32), (128, 16), (256, 8), (512, 4), (512, 4)):
        for _ in range(convs):
            yield conv(before, width, 3, side, others=3)  # a bias and a norm
            before = width
    yield linear(512)


def mobilenetv2() -> Counts:
    yield conv(3, 16, 3, 16)
    before, side = 16, 16
    for expansion, width, blocks, first_stride in MOBILE:
        for stride in [first_stride] + [1] * (blocks - 1):
            hidden = expansion * before
            yield from (conv(before, hidden, 1, side), conv(hidden, hidden, 3, side // stride, hidden))
            before, side = width // 2, side // stride
            yield conv(hidden, before, 1, side)
    yield from (conv(160, 1280, 1, 2), linear(1280))


def shufflenetv1() -> Counts:
    yield conv(3, 24, 1, 32)
    for before, width, units, side in ((24, 240, 4, 16), (240, 480, 8, 8), (480, 960, 4, 4)):
        mid = (width - before) // 4
        yield conv(before, mid, 1, 2 * side, 1 if before == 24 else 3)
        yield from (conv(mid, mid, 3, side, mid), conv(mid, width - before, 1, side, 3))
        for _ in range(units - 1):
            yield from (conv(width, width // 4, 1, side, 3), conv(width // 4, width // 4, 3, side, width // 4))
            yield conv(width // 4, width, 1, side, 3)
    yield linear(960)


def shufflenetv2() -> Counts:
    yield conv(3, 24, 1, 32)
    for before, width, units, side in ((24, 116, 4, 16), (116, 232, 8, 8), (232, 464, 4, 4)):
        half = width // 2
        yield from (conv(before, before, 3, side, before), conv(before, half, 1, side), conv(before, half, 1, 2 * side))
        yield from (conv(half, half, 3, side, half), conv(half, half, 1, side))
        for _ in range(units - 1):
            yield from (conv(half, half, 1, side), conv(half, half, 3, side, half), conv(half, half, 1, side))
    yield from (conv(464, 1024, 1, 4), linear(1024))


LAYERS = {
    **{f"resnet{depth}": list(resnet(depth, 16, 1)) for depth in (8, 20, 32, 56, 110)},
    **{f"resnet{depth}x4": list(resnet(depth, 32, 4)) for depth in (8, 32)},
    **{f"wrn-{d}-{k}": list(resnet(d - 2, 16, k, norm_of_projection=0)) for d, k in ((16, 2), (40, 1), (40, 2))},
    **{
        "vgg8": list(vgg(1)),
        "vgg13": list(vgg(2)),
        "resnet50": list(resnet50()),
        "mobilenetv2": list(mobilenetv2()),
    },
    **{"shufflenetv1": list(shufflenetv1()), "resnet18": list(resnet18()), "shufflenetv2": list(shufflenetv2())},
}


UNPUBLISHED: tuple[str, ...] = ()
"""Networks of our own, of which no paper's table speaks."""


def test_the_tables_speak_of_the_whole_zoo() -> None:
    assert not set(UNPUBLISHED) & SHAPES.keys()
    expected = MODELS.keys() - set(UNPUBLISHED)
    for table in (SHAPES.keys(), LAYERS.keys(), MILLIONS.keys() | FOR_TEN_CLASSES.keys()):
        assert table == expected, "a published network has a row in each table here, one of our own is UNPUBLISHED"


@pytest.mark.parametrize("arch", LAYERS)
def test_parameters_and_macs_are_those_of_the_papers_tables(arch: str) -> None:
    parameters, macs = (sum(column) for column in zip(*LAYERS[arch], strict=True))
    found = macs_of(built(arch), torch.zeros(1, 3, 32, 32))
    assert (found["num_params"], found["macs"], found["agree"]) == (parameters, macs, True)
    assert round(parameters / 1e6, 2) == MILLIONS.get(arch, round(parameters / 1e6, 2))


@pytest.mark.parametrize("arch", FOR_TEN_CLASSES)
def test_resnets_for_ten_classes_cost_what_is_published(arch: str) -> None:
    found = macs_of(built(arch, num_classes=10), torch.zeros(1, 3, 32, 32))
    assert (round(found["num_params"] / 1e6, 2), round(found["macs"] / 1e6, 2)) == FOR_TEN_CLASSES[arch]


@pytest.mark.parametrize("arch", SHAPES)
def test_features_have_the_published_shapes_at_any_size(arch: str) -> None:
    features, pooled = SHAPES[arch]
    model = built(arch, num_classes=7, in_channels=1)
    for height, width in ((1, 1), (1, 2)):
        found = probe_shapes(model, in_channels=1, image_size=(32 * height, 32 * width))
        assert list(zip(found.channels, found.sizes, strict=True)) == [
            (c, (s * height, s * width)) for c, s in features
        ]
        assert (found.pooled, found.num_classes) == (pooled, 7)
    assert probe_shapes(model, in_channels=1, image_size=(28, 28)).channels == found.channels


@pytest.mark.parametrize("arch", MODELS)
def test_outputs_fit_together_and_each_level_can_be_refined(arch: str) -> None:
    model, images = built(arch), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        clean: Outputs = model(images)
        torch.testing.assert_close(clean.final.mean(dim=(2, 3)), clean.pooled)
        assert torch.equal(clean.classifier(clean.pooled), clean.logits)
        assert all(bool((feature < 0).any()) for feature in clean.features)
        for chosen in range(len(clean.features)):
            seen: list[int] = []

            def refine(level: int, feature: Tensor, *, chosen: int = chosen, seen: list[int] = seen) -> Tensor:
                seen.append(level)
                return -feature if level == chosen else feature

            refined = model(images, refine)
            assert seen == list(range(len(clean.features)))
            assert torch.equal(refined.features[chosen], -clean.features[chosen])
            assert not torch.allclose(refined.logits, clean.logits, rtol=1e-3, atol=0)


def test_a_shuffle_spreads_each_group_over_all_the_next() -> None:
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffled(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffled(channels, 1), channels)


@pytest.mark.parametrize("arch", ["wrn-16-2", "vgg8", "mobilenetv2", "resnet50"])
def test_convolutions_start_as_the_benchmarks_do(arch: str) -> None:
    for module in built(arch).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (
            "wrn-40-2",
            {"block1.layer.5.conv2.weight", "block2.layer.0.convShortcut.weight", "bn1.running_var", "fc.bias"},
        ),
        ("vgg13", {"block0.0.bias", "block1.3.weight", "block4.4.running_mean", "classifier.weight"}),
        ("resnet50", {"layer1.0.shortcut.1.weight", "layer3.5.conv3.weight", "layer4.2.bn2.bias", "linear.weight"}),
    ],
)
def test_teachers_have_the_benchmarks_parameter_names(arch: str, names: set[str]) -> None:
    assert names <= built(arch).state_dict().keys()


@pytest.mark.slow
def test_the_exported_bottlenecks_answer_as_torch_does(tmp_path: Path) -> None:
    """The other families: tests/export/test_zoo.py."""
    model, images = built("resnet50"), torch.randn(3, 3, 32, 32)
    onnx_from_model(model, images, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images.numpy()})
    expected = model(images).logits.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
