"""Models that the pipeline did not train, as a user brings them: a .py file, a checkpoint, images in folders."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from afpkd.errors import UserError
from afpkd.models.user_file import model_from_file
from afpkd.record import Json
from export.sealed import verify_bundle
from pipeline.evaluation import evaluate_path
from pipeline.foreign import export_foreign

ARCHITECTURE = """
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.grows = (outputs - inputs) // 2

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grows:  # a shortcut without parameters: every second pixel, new channels are zero
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grows, self.grows))
        return F.relu(out + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = Block(8, 8, 1), Block(8, 16, 2)
        self.linear = nn.Linear(16, 4)

    def forward(self, x):
        out = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.linear(F.avg_pool2d(out, out.size()[3]).flatten(1))


def net():
    return Net()
"""
SPEC = """
num_classes = 4
[input]
size = 16
mean = [0.45, 0.5, 0.55]
std = [0.2, 0.25, 0.3]
[weights]
key = "ema.state_dict"
strip_prefix = "module."
[data]
kind = "folder"
path = "images"
split = "test"
calibration_split = "train"
"""
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.45, 0.5, 0.55), (0.2, 0.25, 0.3)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: net.py, a checkpoint with a nested key and a prefix, 520 training and 48 test images."""
    root, generator = tmp_path_factory.mktemp("foreign"), np.random.default_rng(0)
    (root / "net.py").write_text(ARCHITECTURE)
    (root / "spec.toml").write_text(SPEC)
    for split, num in (("train", 130), ("test", 12)):
        for label in range(4):
            folder = root / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(num):
                Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    torch.manual_seed(0)
    model = model_from_file(f"{root / 'net.py'}:net")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    torch.save({"epoch": 3, "ema": {"state_dict": state}}, root / "net.pth")
    torch.onnx.export(model.eval(), (torch.zeros(2, 3, 16, 16),), root / "net.onnx", dynamo=True, opset_version=18,
                      input_names=["image"], output_names=["scores"], external_data=False, verbose=False,
                      dynamic_shapes=({0: torch.export.Dim("n")},))  # fmt: skip
    return root


def _independent(home: Path) -> float:
    """Top-1 of the test images by torch alone, an image at a time."""
    model = model_from_file(f"{home / 'net.py'}:net").eval()
    state = torch.load(home / "net.pth", weights_only=True)["ema"]["state_dict"]
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()}, strict=False)
    right = 0
    for label in range(4):
        for path in (home / "images" / "test" / f"class{label}").iterdir():
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
            with torch.no_grad():
                right += int(model(((pixels - MEAN) / STD)[None]).argmax()) == label
    return 100 * right / 48


def _weights(home: Path, **changed: object) -> Json:
    options = {"weights": home / "net.pth", "arch": f"{home / 'net.py'}:net", "onnx": None}
    return {**options, "spec_file": home / "spec.toml", "out": home / "bundle", **changed}


@pytest.mark.parametrize("kind", ["weights", "onnx"])
def test_a_foreign_model_becomes_a_bundle_with_its_own_accuracy(kind: str, home: Path, tmp_path: Path) -> None:
    options = _weights(home, out=tmp_path / "bundle")
    if kind == "onnx":
        options |= {"weights": None, "arch": None, "onnx": home / "net.onnx"}
    manifest = export_foreign(**options)
    assert verify_bundle(tmp_path / "bundle") == json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    measured = evaluate_path(tmp_path / "bundle", arch=None, data=None, recipe=None)
    assert set(measured) == {"fp32", "fp16", "int8"}
    assert measured["fp32"] == {"top1": pytest.approx(_independent(home)), "n": 48}
    assert manifest["torch_top1"] == measured["fp32"]["top1"]
    assert manifest["lineage"]["calibration"]["source"] == "train"
    assert manifest["lineage"]["calibration"]["warning"] is None
    assert manifest["lineage"]["calibration"]["num"] == 512
    assert ("architecture" in manifest["lineage"]) == (kind == "weights")
    # stem, two blocks of two convolutions on 16x16 and 8x8 maps, a linear layer
    stem, block1 = 3 * 8 * 9 * 256, 2 * 8 * 8 * 9 * 256
    assert manifest["macs"]["macs"] == stem + block1 + (8 * 16 + 16 * 16) * 9 * 64 + 16 * 4
    files = [onnx.load(tmp_path / "bundle" / entry["path"]) for entry in manifest["files"]]
    assert {proto.graph.input[0].name for proto in files} == {"input"}


def test_without_a_calibration_split_the_manifest_warns(home: Path, tmp_path: Path) -> None:
    spec = home / "alone.toml"
    spec.write_text(SPEC.replace('split = "test"', 'split = "train"').replace('calibration_split = "train"', ""))
    manifest = export_foreign(**_weights(home, spec_file=spec, out=tmp_path / "bundle"))
    found = manifest["lineage"]["calibration"]
    assert found["source"] == "train"
    assert "evaluated split 'train'" in found["warning"]


def test_files_that_are_not_read_are_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = home / "images" / "test" / "class0" / "x.heic"
    photo.write_text("pixels of a phone")
    with pytest.raises(UserError, match="no such file"):
        export_foreign(**_weights(home, arch="nowhere.py:net"))
    photo.unlink()
    assert "left out, not read: 1 .heic (such as class0/x.heic)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"onnx": Path("x.onnx")}, "--onnx MODEL.onnx, or --weights W.pth"),
        ({"weights": None}, "--onnx MODEL.onnx, or --weights W.pth"),
        ({"arch": None}, "go together"),
        ({"spec_file": None}, "--spec SPEC.toml"),
        ({"out": None}, "--out FOLDER"),
        ({"weights": Path("nowhere.pth")}, "nowhere.pth: no such file"),
        ({"arch": "net:net"}, "FILE.py:FUNCTION was expected"),
        ({"arch": "nowhere.py:net"}, "nowhere.py: no such file"),
    ],
)
def test_impossible_options_are_one_line(changed: Json, said: str, home: Path) -> None:
    with pytest.raises(UserError) as error:
        export_foreign(**_weights(home, **changed))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_would_be_lost_is_refused_before_any_image_is_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.foreign.read_folder", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(UserError, match="no part of a bundle, and would be lost"):
        export_foreign(**_weights(home, out=home))


def test_a_model_is_not_exported_over_itself(home: Path, tmp_path: Path) -> None:
    model = tmp_path / "fp32.onnx"  # a name that a bundle's own files have
    model.write_bytes((home / "net.onnx").read_bytes())
    (tmp_path / "golden.npz").touch()  # as in a bundle
    with pytest.raises(UserError, match=r"fp32\.onnx: lies in .*, which is replaced: name another folder"):
        export_foreign(**_weights(home, onnx=model, weights=None, arch=None, out=tmp_path))
    assert model.read_bytes() == (home / "net.onnx").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_classes = 4", "num_classes = 5", "4 classes, but num_classes = 5"),
        ('"ema.state_dict"', '"ema.weights"', "holds no 'ema.weights' (at 'weights' there is: state_dict)"),
        ('"module."', '"model."', "does not begin with 'model.'"),
        ('path = "images"', 'path = "pictures"', "no such folder"),
        ('calibration_split = "train"', 'calibration_split = "test"', "has 48 images, int8 takes 512"),
        (
            "mean = [0.45, 0.5, 0.55]\nstd = [0.2, 0.25, 0.3]",
            "mean = [0.5]\nstd = [0.2]",
            "net, on images of 1x16x16, as",
        ),
        ("size = 16", "size = 20", ""),  # the network pools whatever it is given: another size works
    ],
)
def test_a_spec_that_does_not_fit_is_one_line(old: str, new: str, said: str, home: Path, tmp_path: Path) -> None:
    spec = home / "changed.toml"
    spec.write_text(SPEC.replace(old, new))
    options = _weights(home, spec_file=spec, out=tmp_path / "bundle")
    if not said:
        assert export_foreign(**options)["input"]["shape"] == ["batch", 3, 20, 20]
        return
    with pytest.raises(UserError) as error:
        export_foreign(**options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def other():\n    return 1\n", "has no function 'net' (it has: other)"),
        ("def net():\n    return 1\n", "it returned int, a torch.nn.Module was expected"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name' [E"),
        ("def net(:\n", "arch.py:1: SyntaxError"),
        ("def net():\n    x = 1\n    return x / 0\n", "arch.py:3: ZeroDivisionError"),
        ("def net():\n    return half(1)\ndef half(x):\n    return x / 0\n", "arch.py:4: ZeroDivisionError"),
        ("def net(depth):\n    return depth\n", "TypeError"),
        ("import sys\nsys.exit(0)\n", "arch.py:2: it ends the program (SystemExit: 0)"),
        ("def net():\n    raise SystemExit\n", "arch.py:2: it ends the program (SystemExit)"),
        (
            "from argparse import *\np = ArgumentParser()\np.add_argument('x')\np.parse_args()\n",
            "arch.py:4: it ends",
        ),
        ("def net():\n    assert 1 == 2\n", "arch.py:2: AssertionError (assert 1 == 2)"),
        (
            "from beside import block\n",
            "arch.py:1: ModuleNotFoundError: No module named 'beside': put it into this one",
        ),
        (
            "import torch\ndef net():\n    return torch.compile(torch.nn.ReLU())\n",
            "it returned a compiled network: ret",
        ),
        (
            "from torch import nn, compile\ndef net():\n    return nn.Sequential(compile(nn.ReLU()))\n",
            "it returned a compiled network: return it as it is before torch.compile",
        ),
    ],
)
def test_a_fault_in_the_users_file_names_its_line(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "arch.py").write_text(source)
    (tmp_path / "beside.py").write_text("block = 1\n")
    with pytest.raises(UserError) as error:
        model_from_file(f"{tmp_path / 'arch.py'}:net")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_reads_arguments_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python arch.py` would have: those of this program are not for it."""
    monkeypatch.setattr(sys, "argv", ["afpkd", "distill", "--width", "3"])
    lines = [
        "import argparse, torch",
        "parser = argparse.ArgumentParser()",
        "parser.add_argument('--width', default=2)",
    ]
    lines += ["args = parser.parse_args()", "def net():", "    return torch.nn.Linear(args.width, 1)"]
    (tmp_path / "arch.py").write_text("\n".join(lines))
    (linear,) = model_from_file(f"{tmp_path / 'arch.py'}:net").modules()
    assert linear.in_features == 2
    assert sys.argv == ["afpkd", "distill", "--width", "3"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("size = 24", "input image is float ['batch', 3, 16, 16], expected float [batch, 3, 24, 24]"),
        ("size = 16", ""),
    ],
)
def test_a_foreign_graph_of_another_shape_is_refused(spec: str, said: str, home: Path, tmp_path: Path) -> None:
    (home / "shape.toml").write_text(SPEC.replace("size = 16", spec))
    options = _weights(home, weights=None, arch=None, onnx=home / "net.onnx", spec_file=home / "shape.toml")
    if said:
        with pytest.raises(UserError, match="expected float"):
            export_foreign(**{**options, "out": tmp_path / "bundle"})
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((home / "net.onnx").read_bytes()[:500])
    with pytest.raises(UserError, match=r"broken\.onnx: not a valid ONNX file"):
        export_foreign(**{**options, "onnx": broken, "out": tmp_path / "bundle"})
