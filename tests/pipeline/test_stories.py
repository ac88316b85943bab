"""The user stories of docs/: their files are written, their commands run as they stand; tiny data, a few steps."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from afpkd.record import read_record

DOCS = Path(__file__).parent.parent.parent / "docs"
CLASSES = ("bird", "cat", "dog")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with 3 x 40 photos of a colour a class, of different sizes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            height, width = generator.integers(30, 50, 2)
            pixels = generator.integers(0, 160, (height, width, 3), dtype=np.uint8)
            pixels[..., label] += 95
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    return tmp_path


def _blocks(story: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / story).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def _shortened(recipe: str) -> str:
    """The documented recipe, for a minute: one epoch, one file, no demands on what is learnt."""
    assert "epochs = 30" in recipe
    short = recipe.replace("epochs = 30", "epochs = 1\nbatch_size = 16").replace("min_top1 = 60.0", "min_top1 = 0.0")
    short = short.replace("image_size = 64 ", "image_size = 32 ")
    return short + '\n[prompts]\nepochs = 0.2\nbatch_size = 16\nmust_choose = false\n[export]\nprecisions = ["fp32"]\n'


def _run(story: str, home: Path, only: slice = slice(None)) -> list[str]:
    """Run the story's commands in `home`; what each said. `make` as the program that it calls."""
    (commands,) = _blocks(story, "bash")
    said = []
    for line in commands.splitlines()[only]:
        words = shlex.split(line)
        if words[0] == "make":
            variables = dict(word.split("=") for word in words if "=" in word)
            words = ["afpkd", "run", *(w for w in words[1:] if "=" not in w), "--recipe", variables["RECIPE"]]
        assert words[0] == "afpkd"
        command = [sys.executable, "-m", "pipeline", *words[1:]]
        path = f"{DOCS.parent}:{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        said.append(done.stdout + done.stderr)
    return said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_my_photos_in_folders(home: Path) -> None:
    recipe, split = _blocks("own-images.md", "toml")
    (home / "photos.toml").write_text(_shortened(recipe))
    first, *measured = _run("own-images.md", home)
    assert "epochs of 86 images" in first  # 40 - 8 a class for training, a tenth held out
    assert [re.fullmatch(r"top-1 [\d.]+ % of 24 images\n", said) is not None for said in measured] == [True, True]
    run = home / "runs" / "photos"
    assert (run / "student" / "bundle" / "labels.txt").read_text().split() == list(CLASSES)
    record = read_record(run / "student" / "record.json")
    mean = record["preprocessing"]["mean"]
    assert len(mean) == 3
    assert all(0.3 < value < 0.6 for value in mean)  # measured: (160 / 2 + 95 / 3) / 255
    assert read_record(run / "student" / "bundle" / "manifest.json")["preprocessing"]["mean"] == mean
    ended = {role: (run / role / "record.json").stat().st_mtime_ns for role in ("teacher", "student", "undistilled")}
    os.utime(home / "photos" / "cat" / "0.jpg", (1, 1))  # touched: nothing runs
    (again,) = _run("own-images.md", home, slice(1))
    assert "epoch" not in again.replace("epochs of", "")
    assert {role: (run / role / "record.json").stat().st_mtime_ns for role in ended} == ended
    from pipeline.recipe_reader import load_recipe

    for name in ("train", "val", "test"):
        (home / "photos" / name).symlink_to(home / "photos" / "cat")
    (home / "split.toml").write_text(split)
    data = load_recipe(str(home / "split.toml"))[1].data
    assert (getattr(data, "train", None), getattr(data, "val", None)) == ("train", "val")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_my_timm_teacher(home: Path) -> None:
    (recipe,) = _blocks("timm-teacher.md", "toml")
    (home / "teacher.toml").write_text(_shortened(recipe))
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), home / "teacher.pth")
    loaded, trained = _run("timm-teacher.md", home)
    assert re.search(r"loaded (\d+) of \1 tensors", loaded)
    assert "student" in trained
    record = read_record(home / "runs" / "teacher" / "teacher" / "record.json")
    assert record["network"]["own"] == [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
    student = read_record(home / "runs" / "teacher" / "student" / "record.json")
    assert (student["arch"], student["method"]) == ("timm:mobilenetv4_conv_small", "afpkd")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_my_own_pytorch_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, loading = _blocks("own-network.md", "python")
    (recipe,) = _blocks("own-network.md", "toml")
    (home / "net.py").write_text(network)
    (home / "mine.toml").write_text(_shortened(recipe))
    _run("own-network.md", home)
    student = read_record(home / "runs" / "mine" / "student" / "record.json")
    assert student["arch"] == "net.py:make"
    assert (home / "runs" / "mine" / "student" / "bundle" / "fp32.onnx").is_file()
    done = subprocess.run([sys.executable, "-c", loading], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_story_is_linked_from_the_readme() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(DOCS.glob("*.md")) if f"(docs/{path.name})" not in readme] == []
