"""A detector's backbone from weights that are there, published or a file's; what cannot be had is one line."""

from pathlib import Path

import pytest
import timm
import torch
from torchvision.models import resnet18

from afpkd.checkpoint import save_weights
from afpkd.errors import UserError
from afpkd.models.fcos import FcosDetector


def test_a_backbone_starts_from_a_file_and_its_norms_stay(tmp_path: Path) -> None:
    torch.manual_seed(2)
    whole = resnet18()
    save_weights(tmp_path / "r18.safetensors", whole.state_dict())
    network = FcosDetector("resnet18", width=64, num_convs=1, num_classes=2)
    assert "loaded 122 of 122 tensors" in network.load_backbone("r18.safetensors", (tmp_path,))
    body = network.backbone.body.state_dict()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in body.items())
    network.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, network.backbone.body.state_dict()[name]) for name, value in body.items())
    assert not network.backbone.body.bn1.weight.requires_grad
    assert network.backbone.body.conv1.weight.requires_grad


def test_a_mobilenet_backbone_starts_from_a_file(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v3_small

    whole = mobilenet_v3_small()
    save_weights(tmp_path / "m.safetensors", whole.state_dict())
    network = FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=2)
    network.load_backbone("m.safetensors", (tmp_path,))
    assert torch.equal(network.backbone.body.state_dict()["3.block.0.0.weight"], whole.features[3].block[0][0].weight)


BAD_BACKBONES: dict[str, tuple[str, str]] = {
    "missing file": ("gone.pt", "no file at"),
    "unknown torchvision": ("torchvision:IMAGENET9K", "IMAGENET1K_V1"),
    "unknown timm": ("timm:resnet9000", "timm knows no such model"),
    "another timm": ("timm:seresnet18", r"weights of seresnet18, and the backbone is a resnet18: name timm:resnet18\."),
}


@pytest.mark.parametrize("case", BAD_BACKBONES)
def test_a_backbone_that_cannot_be_had_is_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, said = BAD_BACKBONES[case]
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: make(name))  # as if all weights were here
    network = FcosDetector("resnet18", width=64, num_convs=1, num_classes=2)
    with pytest.raises(UserError, match=said) as caught:
        network.load_backbone(source, (tmp_path,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["torchvision:IMAGENET1K_V1", "timm:resnet18.a1_in1k"])
def test_an_unreachable_network_is_one_line(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no download is possible: a proxy that refuses, and empty caches."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    network = FcosDetector("resnet18", width=64, num_convs=1, num_classes=2)
    with pytest.raises(UserError, match=r'cannot be fetched .*: name a file that you have, or set backbone = "none"'):
        network.load_backbone(source)
