"""How strangers' networks call their layers, and what they leave on themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.models.foreign import _as_ours
from afpkd.models.wrapped import Wrapped


class Small(nn.Module):
    """Two convolutions, a ReLU, a pool and a classifier; each may be called by the name of its input."""

    def __init__(self, *, named: bool = False, kept: str = "") -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU()
        self.fc, self.named, self.kept = nn.Linear(8, 5), named, kept

    def forward(self, x: Tensor) -> Tensor:
        low = self._call(self.act, self._call(self.first, x))
        feat = self._call(self.act, self._call(self.second, low))
        if self.kept == "list":
            self.first.maps = [low]  # type: ignore[assignment]  # what a stranger's network does
        elif self.kept:
            self.feat = feat.detach() if self.kept == "detached" else feat
        return self._call(self.fc, feat.mean(dim=(2, 3)))

    def _call(self, layer: nn.Module, given: Tensor) -> Tensor:
        return torch.as_tensor(layer(input=given) if self.named else layer(given))


def test_layers_that_are_called_by_the_name_of_their_input_are_read_as_others() -> None:
    outputs, refined = [], []
    for named in (False, True):
        torch.manual_seed(0)
        model = Wrapped(Small(named=named), in_channels=3, image_size=(32, 32), stages=["first"]).eval()
        outputs.append(model(torch.ones(2, 3, 32, 32)))
        refined.append(Wrapped(Small(named=named), in_channels=3, image_size=(32, 32)).taps)
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].pooled, outputs[1].pooled)
    assert outputs[1].pooled.shape == (2, 8)
    assert refined[0] == refined[1]


def test_a_named_input_is_refined_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), _Named(nn.ReLU()), nn.Conv2d(4, 8, 3, 2, 1), _Named(nn.ReLU()))
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)])
    model = Wrapped(network, in_channels=3, image_size=(32, 32), stages=["1", "3"]).eval()
    assert [(tap.module, tap.before) for tap in model.taps] == [("1.layer", True), ("3.layer", True)]
    images = torch.ones(2, 3, 32, 32)
    plain, blank = model(images), model(images, lambda _level, feature: feature * 0)
    assert float(plain.features[1].detach().min()) < 0, "before the ReLU"
    assert not blank.pooled.any()


class _Named(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(input=x))


@pytest.mark.parametrize(("kept", "named"), [("map", "'feat'"), ("list", "'first.maps'"), ("detached", ""), ("", "")])
def test_a_network_that_keeps_a_map_on_itself_is_one_line(kept: str, named: str) -> None:
    if not named:
        _as_ours(Small(kept=kept), 5, 3, (32, 32), ())
        return
    with pytest.raises(UserError, match=rf"keeps a map on itself, {named}, so that it cannot be copied for export"):
        _as_ours(Small(kept=kept), 5, 3, (32, 32), ())


ALONE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=TRACKS)
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)
    def forward(self, x):
        return self.fc(FORWARD)
"""


OUTPUTS = """
from torch import nn
from afpkd.models.outputs import Outputs
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)
    def forward(self, x, refine=None):
        x = self.conv(x)
        x = x if refine is None else refine(0, x)
        pooled = x.relu().mean((2, 3))
        return Outputs(self.fc(pooled), [x], pooled, x, self.fc)
"""


def test_stages_of_a_network_that_tells_its_features_are_refused(tmp_path: Path) -> None:
    """They would be read by nobody."""
    (tmp_path / "net.py").write_text(OUTPUTS)
    options: Any = {"num_classes": 5, "in_channels": 3, "image_size": (8, 8)}
    assert build_model(f"{tmp_path / 'net.py'}:Net", **options)
    with pytest.raises(UserError, match=r"it returns features of its own: leave `stages` out \[E_NETWORK_FIT\]"):
        build_model(f"{tmp_path / 'net.py'}:Net", **options, stages=("conv",))


def test_a_network_that_tells_its_features_lets_prompts_act_on_them_and_keeps_them(tmp_path: Path) -> None:
    """One without `refine` would end phase 1, after its training; one that works in place would overwrite its maps."""
    options: Any = {"num_classes": 5, "in_channels": 3, "image_size": (8, 8)}
    (tmp_path / "none.py").write_text(OUTPUTS.replace(", refine=None", "").replace("refine is None", "True"))
    with pytest.raises(UserError, match=r"its forward takes no `refine`, .* let it take one, or return the logits"):
        build_model(f"{tmp_path / 'none.py'}:Net", **options)
    text = OUTPUTS.replace(
        "nn.Linear(4, num_classes)", "nn.Linear(4, num_classes)\n        self.act = nn.ReLU(inplace=True)"
    )
    (tmp_path / "place.py").write_text(text.replace("x.relu()", "self.act(x)"))
    network = build_model(f"{tmp_path / 'place.py'}:Net", **options)
    assert network(torch.randn(2, 3, 8, 8)).features[0].min() < 0


@pytest.mark.parametrize(
    ("forward", "tracks", "said"),
    [
        ("self.norm(self.conv(x)).flatten(1)", False, "answers an image otherwise beside another one"),
        ("self.conv(x / x.max()).flatten(1)", True, "answers an image otherwise beside another one"),
        ("nn.functional.dropout(self.conv(x)).flatten(1)", True, "beside another one, or each time: let its forward"),
        ("self.conv(x).view(len(x), 144)", True, r"Use \.reshape\(\.\.\.\) instead"),
        ("self.norm(self.conv(x)).flatten(1)", True, ""),
    ],
)
def test_an_images_answer_is_its_own_whatever_lies_beside_it(
    forward: str, tracks: bool, said: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(ALONE.replace("TRACKS", str(tracks)).replace("FORWARD", forward))
    arch = f"{tmp_path / 'net.py'}:Net"
    if said:
        with pytest.raises(UserError, match=said):
            build_model(arch, num_classes=5, in_channels=3, image_size=(8, 8))
    else:
        assert build_model(arch, num_classes=5, in_channels=3, image_size=(8, 8)).training
