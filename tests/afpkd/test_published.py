"""Weights that a library publishes: not to be had, what they want to see, what becomes of another number of classes."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._api import WeightsEnum

from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.models.foreign import published_normalisation, require_published_classes
from afpkd.models.wrapped import renormalised
from tests.afpkd.networks import SIZE

OFFLINE = """
import logging, sys, urllib.request
from afpkd.models import build_model
from afpkd.models.foreign import published_normalisation
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


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("timm:reznet18", "unknown timm model 'reznet18': did you mean 'resnet18'?"),
        ("timm:resnet18.a4_in1k", "unknown timm model 'resnet18.a4_in1k': did you mean"),
        ("torchvision:reznet18", "unknown torchvision model 'reznet18': did you mean 'resnet18'?"),
        ("torchvision:fcos_resnet50_fpn", "unknown torchvision model 'fcos_resnet50_fpn'"),
        ("net.py:make", "timm and torchvision publish weights: name a file"),
    ],
)
def test_what_publishes_no_weights_says_so_where_its_normalisation_is_asked_for(arch: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        published_normalisation(arch)
    with pytest.raises(UserError, match=re.escape(said)):
        require_published_classes(arch, 1000)


def test_the_normalisation_of_published_weights_is_that_of_their_tag() -> None:
    imagenet, inception = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3)
    assert published_normalisation("torchvision:resnet18") == imagenet
    assert published_normalisation("timm:resnet18.a1_in1k") == imagenet
    assert published_normalisation("timm:vit_base_patch16_224.augreg_in21k") == inception


@pytest.mark.parametrize("arch", ["torchvision:resnet18", "timm:resnet18.a1_in1k"])
def test_published_weights_alone_make_no_teacher_of_other_classes(arch: str) -> None:
    require_published_classes(arch, 1000)
    with pytest.raises(UserError, match=f"{arch}: weights = 'default' know 1000 classes, the data have 2: the last"):
        require_published_classes(arch, 2)


def test_a_published_network_without_a_linear_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torchvision.models.squeezenet1_0()  # stands for the download
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: network)
    told = r"^torchvision:squeezenet1_0: its class scores are not the output of an nn\.Linear.*: take another network"
    with pytest.raises(UserError, match=told):
        build_model("torchvision:squeezenet1_0", num_classes=5, in_channels=3, image_size=SIZE, published=True)


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


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_inceptions_are_the_networks_that_their_weights_are_read_back_into(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, init_weights=False, transform_input=True)
    for buffer, values in theirs.named_buffers():
        if buffer.endswith("running_var"):
            values.fill_(0.1)  # random weights let little through
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda _weights, **_: theirs.state_dict())
    arch, classes, size = f"torchvision:{name}", 1000, (80, 80)
    published, again = (
        build_model(arch, num_classes=classes, in_channels=3, image_size=size, published=which).eval()
        for which in (True, False)
    )
    again.load_state_dict(published.state_dict())
    images, imagenet = torch.rand(2, 3, *size), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in imagenet)
    with torch.no_grad():
        wanted = theirs.eval()((images - mean) / std)
        for network in (published, again):
            found = renormalised(network, imagenet, published_normalisation(arch))((images - mean) / std)
            torch.testing.assert_close(found.logits, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))
