"""What is said of the images of a recipe before anything is trained: too few, untaught classes, no spread."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afpkd.data import DATASETS
from afpkd.errors import UserError
from pipeline.recipe_reader import load_recipe
from pipeline.splits import Splits, splits_of, untaught
from pipeline.stages import train_teacher, train_undistilled
from pipeline.workspace import open_run
from tests.pipeline.recipe_files import PHOTOS, written


def test_too_few_images_for_int8_are_said_before_any_training(photos: Path) -> None:
    run = open_run(written(photos, PHOTOS), photos / "runs")
    with pytest.raises(UserError, match=r"int8 is calibrated on 512 training images, there are 6"):
        train_undistilled(run)
    assert not (photos / "runs").exists()


@pytest.mark.parametrize("section", ["teacher", "prompts", "distill"])
def test_a_batch_of_more_images_than_there_are_is_said_before_any_training(photos: Path, section: str) -> None:
    sizes = {name: 64 if name == section else 2 for name in ("teacher", "prompts", "distill")}
    changed = "".join(f"[{name}]\nbatch_size = {size}\n" for name, size in sizes.items())
    more = PHOTOS + '[export]\nprecisions = ["fp32"]\n' + changed
    run = open_run(written(photos, more), photos / "runs")
    with pytest.raises(UserError, match=rf"^{section}\.batch_size: 64 is more than the \d images trained on"):
        train_teacher(run)
    assert not (photos / "runs").exists()


def test_a_class_whose_images_are_all_held_out_is_named(photos: Path) -> None:
    """Two images a class, one of them for test: of the three that are left one is held out, and its class has none."""
    (photos / "photos" / "cow").mkdir()
    for value in range(2):
        Image.new("RGB", (16, 8), (9, 5 + value, 9 - value)).save(photos / "photos" / "cow" / f"{value}.png")
        for name in ("ant", "bee"):
            (photos / "photos" / name / f"{value + 2}.png").unlink()
    sizes = "".join(f"[{name}]\nbatch_size = 2\n" for name in ("teacher", "prompts", "distill"))
    text = f'{PHOTOS}{sizes}[export]\nprecisions = ["fp32"]\n'
    file = written(photos, text)
    splits = splits_of(load_recipe(file)[1], Path(file), torch.device("cpu"))
    (note,) = [note for note in splits.notes if "to train on" in note]
    (lost,) = set(splits.label_names) - {splits.label_names[label] for label in splits.train.labels.tolist()}
    assert note.startswith(f"1 of 3 classes have no image to train on ({lost}): ")
    assert untaught(np.array([0, 1, 1]), ["ant", "bee"]) == []
    assert untaught(np.array([5]), list("abcdef"))[0].startswith(
        "5 of 6 classes have no image to train on (a, b, c, d,"
    )


def test_a_data_set_of_another_form_than_it_says_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, recipe = load_recipe("default")
    spec = recipe.data.spec
    data = spec.load(tmp_path)
    bad = data._replace(train=data.train._replace(images=data.train.images / np.float32(255)))  # type: ignore[arg-type]  # that is the mistake
    monkeypatch.setitem(DATASETS, recipe.data.name, spec._replace(load=lambda root: bad))
    with pytest.raises(UserError, match=r"data set 'fashion_mnist_5k': train: images are float32 .* are wanted"):
        splits_of(recipe, Path(f"{name}.toml"), torch.device("cpu"))


def test_a_class_without_images_is_said_before_anything_starts(photos: Path) -> None:
    (photos / "photos" / "cow").mkdir()
    command = [sys.executable, "-m", "pipeline", "run", "distill", "--recipe", written(photos, PHOTOS), "--runs"]
    done = subprocess.run([*command, str(photos / "runs")], capture_output=True, text=True, check=False)
    assert (done.returncode, "cow: no image in this class" in done.stderr) == (2, True)
    assert not (photos / "runs").exists()


IGNORED = {
    'train = "a"\ntest = "b/"\nval = "b"': "val: the folder of test: epochs would be chosen on what judges them",
    'train = "a"\ntest = "b"\ntest_share = 0.5': "test_share: would do nothing beside train, which names a folder",
    'train = "a"\ntest = "b"\nsplit_seed = 7': "split_seed: would do nothing beside train",
    'train = "a"\ntest = "b"\nval = "c"\nheldout_share = 0.5': "heldout_share: would do nothing beside val",
}


@pytest.mark.parametrize("keys", IGNORED)
def test_a_key_that_would_do_nothing_and_a_choice_on_test_are_refused(keys: str, photos: Path) -> None:
    with pytest.raises(UserError, match=re.escape(IGNORED[keys])):
        load_recipe(written(photos, PHOTOS + keys))


SMALL = (
    '[export]\nprecisions = ["fp32"]\n[teacher]\nbatch_size = 2\n[prompts]\nbatch_size = 2\n[distill]\nbatch_size = 2\n'
)
TWO_CLASSES = {
    "kd": ("standardise = true", "distill.standardise: of two classes the standardised logits are the same"),
    "dkd": ("", "distill.beta: of two classes one alone is not the target"),
}


@pytest.mark.parametrize("method", TWO_CLASSES)
def test_a_loss_that_has_nothing_to_teach_of_two_classes_is_refused_before_the_teacher(
    method: str, photos: Path
) -> None:
    option, said = TWO_CLASSES[method]
    whole = f'{PHOTOS}{SMALL}method = "{method}"\n{option}\n'
    with pytest.raises(UserError, match=re.escape(said)):
        _read(whole, photos)
    shutil.copytree(photos / "photos" / "ant", photos / "photos" / "cat")
    assert len(_read(whole, photos).label_names) == 3


def test_a_channel_without_spread_is_named(photos: Path) -> None:
    for path in (photos / "photos").rglob("*.png"):
        Image.new("RGB", (16, 8), (0, int(path.stem) * 9, 0)).save(path)
    with pytest.raises(UserError, match=r"data\.std: channel 0 is the same in all training images .*: give data\.mean"):
        _read(PHOTOS + SMALL, photos)


def _read(text: str, folder: Path) -> Splits:
    recipe = load_recipe(written(folder, text))[1]
    return splits_of(recipe, folder / "mine.toml", torch.device("cpu"))


def test_a_published_teacher_of_other_classes_is_refused_before_it_is_fetched(photos: Path) -> None:
    text = PHOTOS + SMALL.replace(
        "[teacher]\nbatch_size = 2\n", '[teacher]\narch = "torchvision:resnet18"\nweights = "default"\n'
    )
    run = open_run(written(photos, text), photos / "runs")
    with pytest.raises(
        UserError, match="weights = 'default' know 1000 classes, the data have 2: the last layer starts"
    ):
        train_teacher(run)
