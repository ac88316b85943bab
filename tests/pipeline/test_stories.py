"""The user stories of docs/: their files are written, their commands run as they stand; tiny data, a few steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from afpkd.record import read_record
from pipeline.record_keys import NETWORK
from tests.record_tables import missing, untold
from tests.stories import CLASSES, DOCS, blocks, commands, run, shortened, write_photos


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with 3 x 40 photos of a colour a class, of different sizes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_photos(tmp_path)
    return tmp_path


def _run(story: str, home: Path, only: slice = slice(None)) -> list[str]:
    """Run the story's commands in `home`; what each said."""
    return [run(line, home) for line in commands(story)[only]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_my_photos_in_folders(home: Path) -> None:
    recipe, split = blocks("own-images.md", "toml")
    (home / "photos.toml").write_text(shortened(recipe))
    first, *measured = _run("own-images.md", home)
    assert "epochs of 86 images" in first  # 40 - 8 a class for training, a tenth held out
    assert [re.fullmatch(r"top-1 [\d.]+ % of 24 images\n", said) is not None for said in measured] == [True, True]
    made = home / "runs" / "photos"
    assert (made / "student" / "bundle" / "labels.txt").read_text().split() == list(CLASSES)
    record = read_record(made / "student" / "record.json")
    assert untold(record, NETWORK) == missing(record, NETWORK) == []
    mean = record["preprocessing"]["mean"]
    assert len(mean) == 3
    assert all(0.3 < value < 0.6 for value in mean)  # measured: (160 / 2 + 95 / 3) / 255
    assert read_record(made / "student" / "bundle" / "manifest.json")["preprocessing"]["mean"] == mean
    ended = {role: (made / role / "record.json").stat().st_mtime_ns for role in ("teacher", "student", "undistilled")}
    os.utime(home / "photos" / "cat" / "0.jpg", (1, 1))  # touched: nothing runs
    (again,) = _run("own-images.md", home, slice(1))
    assert "epoch" not in again.replace("epochs of", "")
    assert {role: (made / role / "record.json").stat().st_mtime_ns for role in ended} == ended
    from pipeline.recipe_reader import load_recipe

    for name in ("train", "val", "test"):
        (home / "photos" / name).symlink_to(home / "photos" / "cat")
    (home / "split.toml").write_text(split)
    data = load_recipe(str(home / "split.toml"))[1].data
    assert (getattr(data, "train", None), getattr(data, "val", None)) == ("train", "val")


def test_a_sweep_over_my_photos_lists_its_students(home: Path) -> None:
    (home / "photos.toml").write_text(blocks("own-images.md", "toml")[0])
    (line,) = re.findall(r"^(afpkd sweep .+)# long: nine students$", (DOCS / "own-images.md").read_text(), re.MULTILINE)
    points = run(f"{line} --dry-run", home).splitlines()
    assert "photos.toml: 9 points" in points
    assert sum(point.startswith("photos.mu=") for point in points) == 9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_my_timm_teacher(home: Path) -> None:
    (recipe,) = blocks("timm-teacher.md", "toml")
    (home / "teacher.toml").write_text(shortened(recipe))
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
    network, loading = blocks("own-network.md", "python")
    (recipe,) = blocks("own-network.md", "toml")
    (home / "net.py").write_text(network)
    (home / "mine.toml").write_text(shortened(recipe))
    _run("own-network.md", home)
    student = read_record(home / "runs" / "mine" / "student" / "record.json")
    assert student["arch"] == "net.py:make"
    assert (home / "runs" / "mine" / "student" / "bundle" / "fp32.onnx").is_file()
    done = subprocess.run([sys.executable, "-c", loading], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_story_is_linked_from_the_readme() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(DOCS.glob("*.md")) if f"(docs/{path.name})" not in readme] == []
