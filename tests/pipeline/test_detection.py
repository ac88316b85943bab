"""The story of docs/own-coco.md: its recipe with smaller numbers, and the documented commands."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.models.fcos import FcosDetector
from afpkd.record import Json, digest, read_record, write_record
from export.making import Order
from pipeline.exporting import export_detector
from pipeline.recipe import STAGE_VERSIONS, _identity
from pipeline.recipe_detection import CocoData, DistillDetector, TrainedDetector
from pipeline.recipe_networks import TrainedTeacher
from pipeline.recipe_reader import load_recipe
from pipeline.record_keys import NETWORK
from pipeline.scenes import detection_task, read_scenery, scenes_for_calibration
from pipeline.workspace import open_run
from tests.record_tables import untold
from tests.scenes import CANVAS, NAMES, as_bombs, write_scenes
from tests.stories import blocks

SMALLER = {
    "heldout = 40": "heldout = 4\nrepeat = 1",
    "[192, 256]": "[64, 96]",
    "min_ap50 = 30.0": 'arch = "fcos-mobilenetv3-64"\nmin_ap50 = 0.0\nepochs = 2',
}
"""What the documented recipe says for somebody's scenes, and what a minute has time for."""


def _documented() -> str:
    (recipe,) = blocks("own-coco.md", "toml")
    for documented, smaller in SMALLER.items():
        assert recipe.count(documented) == 1
        recipe = recipe.replace(documented, smaller)
    return recipe + '\n[prompts]\nepochs = 1\n\n[distill]\nepochs = 2\n\n[export]\nprecisions = ["fp32"]\n'


MINE = _documented()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Somebody's folder: scenes in COCO's format, and a recipe beside them."""
    images = tmp_path / "mine" / "images"
    for name, num in (("train", 20), ("test", 4)):
        write_scenes(tmp_path / name, num, seed=num)
        document = json.loads((tmp_path / name / "instances.json").read_text())
        for image in document["images"]:
            image["file_name"] = f"{name}-{image['file_name']}"
        images.mkdir(parents=True, exist_ok=True)
        for path in (tmp_path / name).glob("*.png"):
            path.rename(images / f"{name}-{path.name}")
        (images.parent / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "mine.toml").write_text(MINE)
    return tmp_path


def test_a_recipe_of_scenes_has_the_sections_of_a_detector(mine: Path) -> None:
    recipe = load_recipe(str(mine / "mine.toml"))[1]
    assert isinstance(recipe.data, CocoData)
    assert isinstance(recipe.teacher, TrainedDetector)
    assert not isinstance(recipe.teacher, TrainedTeacher)
    assert isinstance(recipe.distill, DistillDetector)
    scenery = read_scenery(recipe.data, mine / "mine.toml", recipe.seed)
    assert [len(split.scenes) for split in scenery] == [16, 4, 4]
    assert scenery.train.names == NAMES
    train, heldout = ({scene.id for scene in split.scenes} for split in (scenery.train, scenery.heldout))
    assert not train & heldout


def test_a_detector_that_was_distilled_before_its_adapters_had_a_start_is_another(mine: Path) -> None:
    """Its stage's version could not say so without training all classifiers anew."""
    digests = []
    for method in ("imitation", "none"):
        (mine / "mine.toml").write_text(MINE.replace("[distill]", f'[distill]\nmethod = "{method}"'))
        recipe = load_recipe(str(mine / "mine.toml"))[1]
        keys = [*recipe._data(), _identity(dataclasses.asdict(recipe.distill)), recipe.seed]
        digests.append(recipe.stage_digest("student") == digest(["student", STAGE_VERSIONS["student"], keys]))
    assert digests == [False, True]


def test_the_recipe_says_which_sizes_of_objects_a_level_has(mine: Path) -> None:
    (mine / "mine.toml").write_text(MINE.replace("repeat = 1", "repeat = 1\nrange_divisor = 3.0"))
    recipe = load_recipe(str(mine / "mine.toml"))[1]
    assert isinstance(recipe.data, CocoData)
    torch.manual_seed(0)
    model = build_model("fcos-mobilenetv3-64", num_classes=3, in_channels=3)
    assert isinstance(model, FcosDetector)
    found = model(torch.randn(2, 3, *CANVAS))
    box = {"boxes": torch.tensor([[2.0, 2.0, 90.0, 60.0]]), "labels": torch.tensor([1])}
    asked, three, one = (
        {name: float(loss.detach()) for name, loss in losses.items()}
        for losses in (
            detection_task(recipe.data).losses(model, found, [box, box]),
            model.losses(found, [box, box], 3.0),
            model.losses(found, [box, box]),
        )
    )
    assert asked == three != one


PLACE = '{ annotations = "a.json", images = "photos" }'
BAD = {
    "a method on logits": ('[distill]\nmethod = "kd"\n', "distill.method: kd compares a classifier's logits"),
    "the logit term": ("[distill]\nkappa = 1.0\n", "distill.kappa: the logit term is a classifier's"),
    "maps behind a ReLU": ('[distill]\nmethod = "reviewkd"\nactivated = true\n', "distill.activated: no ReLU ends"),
    "a classifier": ('[distill]\nstudent = "resnet20"\n', "distill.student: unknown detector 'resnet20'"),
    "a key of small images": ("[data]\ncrop_padding = 2\n", "data.crop_padding: unknown key"),
    "scales the wrong way": ("[data]\nscales = [1.2, 0.8]\n", "data.scales: a smaller and a larger factor"),
    "a canvas of nothing": ("[data]\nimage_size = [8, 8]\n", "data.image_size: height and width"),
    "no held-out": ("[data]\nheldout = 0\n", "heldout"),
    "epochs chosen on test": (
        f"[data]\ntest = {PLACE}\nheldout = {PLACE}\n",
        "data.heldout: the file of test: epochs would",
    ),
    "sizes that grow": ("[data]\nrange_divisor = 0.5\n", "data.range_divisor"),
    "a missing split": ('[data]\ntest = { annotations = "a.json" }\n', "data.test.images: missing"),
    "top-1 of a detector": ("[teacher]\nmin_top1 = 3.0\n", "teacher.min_top1: unknown key"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_that_names_the_key(case: str, tmp_path: Path) -> None:
    changed, said = BAD[case]
    (tmp_path / "mine.toml").write_text(f'extends = "bccd-fcos-cpu"\n{changed}')
    with pytest.raises(UserError) as caught:
        load_recipe(str(tmp_path / "mine.toml"))
    assert str(caught.value).startswith("mine.toml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_annotations_and_images_are_named_with_where_they_were_looked_for(mine: Path) -> None:
    for key, kind, path in (("annotations", "file", "mine/train.json"), ("images", "folder", "mine/images")):
        (mine / "gone.toml").write_text(MINE.replace(f'{key} = "{path}"', f'{key} = "nowhere"', 1))
        recipe = load_recipe(str(mine / "gone.toml"))[1]
        assert isinstance(recipe.data, CocoData)
        with pytest.raises(UserError, match=rf"gone\.toml: data\.train\.{key}: no {kind} at .*nowhere"):
            read_scenery(recipe.data, mine / "gone.toml", 0)


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_a_split_that_marks_no_object_is_refused_when_it_is_read(mine: Path, split: str) -> None:
    found = json.loads((mine / "mine" / "test.json").read_text())
    (mine / "mine" / "empty.json").write_text(json.dumps({**found, "annotations": []}))
    place = f'{split} = {{ annotations = "mine/empty.json", images = "mine/images" }}'
    lines = [line for line in MINE.splitlines() if not line.startswith(f"{split} = ")]
    (mine / "mine.toml").write_text("\n".join(lines).replace("[data]", f"[data]\n{place}"))
    recipe = load_recipe(str(mine / "mine.toml"))[1]
    assert isinstance(recipe.data, CocoData)
    with pytest.raises(UserError, match=rf"mine\.toml: data\.{split}: no object is marked: it scores nothing"):
        read_scenery(recipe.data, mine / "mine.toml", 0)


def test_odd_images_of_a_recipe_are_said_when_its_data_are_read(mine: Path) -> None:
    recipe = load_recipe(str(mine / "mine.toml"))[1]
    assert isinstance(recipe.data, CocoData)
    images = mine / "mine" / "images"
    (images / "test-scene0.png").write_bytes((images / "train-scene0.png").read_bytes())
    told = read_scenery(recipe.data, mine / "mine.toml", recipe.seed).told()
    assert told[2].endswith("; 1 images that are training images, too: the score flatters")
    for name in ("train-scene1.png", "train-scene5.png"):
        (images / name).unlink()
    with pytest.raises(UserError, match=r"train\.json: 2 of 20 images are not what is listed: .*scene1\.png \(no such"):
        read_scenery(recipe.data, mine / "mine.toml", recipe.seed)


def test_a_bomb_among_the_scenes_that_calibrate_is_not_decoded(tmp_path: Path) -> None:
    split = write_scenes(tmp_path, 2)
    with as_bombs(), pytest.raises(UserError, match=r"cannot be read \(Image size .*decompression bomb"):
        scenes_for_calibration(split, CANVAS, 0, 2)


def afpkd(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_my_coco_json_from_annotations_to_a_bundle_that_names_my_classes(mine: Path) -> None:
    done = afpkd(mine, "run", "distill", "export", "--recipe", "mine.toml", "--train-device", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    run = mine / "runs" / "mine"
    for role, arch in (("teacher", "fcos-mobilenetv3-64"), ("student", "fcos-mobilenetv3-64")):
        record = read_record(run / role / "record.json")
        assert (record["task"], record["arch"], record["image_size"]) == ("detection", arch, list(CANVAS))
        assert {"test_ap_selected", "test_ap50_selected", "heldout_ap"} <= record["metrics"].keys()
        assert [key for key in untold(record, NETWORK) if not key.startswith("metrics.")] == []
    assert (run / "student" / "bundle" / "labels.txt").read_text().split() == NAMES
    assert list((run / "prompts").glob("level*.png"))
    scored = afpkd(mine, "evaluate", str(run / "student" / "bundle"), "--json")
    found: Json = json.loads(scored.stdout)
    manifest = read_record(run / "student" / "bundle" / "manifest.json")
    assert found["fp32"]["n"] == 4
    assert found["fp32"]["ap"] == pytest.approx(manifest["verification"]["fp32.onnx"]["ap"])
    assert "AP50" in afpkd(mine, "evaluate", str(run / "student" / "bundle")).stdout
    report = afpkd(mine, "report", "--recipe", "mine.toml")
    assert report.returncode == 0, report.stderr[-2000:]
    assert "| AP |" in (run / "report.md").read_text()
    assert "name its bundle" in afpkd(mine, "evaluate", str(run / "student")).stderr
    assert afpkd(mine, "bundle", "verify", str(run / "student" / "bundle")).returncode == 0


def test_scenes_that_changed_after_training_are_not_exported(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.detector.build_detector_bundle", lambda _model, order, **_: {"lineage": order.lineage})
    run = open_run(str(mine / "mine.toml"), mine / "runs")
    assert isinstance(run.recipe.data, CocoData)
    sha256 = read_scenery(run.recipe.data, run.recipe_file, run.recipe.seed).sha256()
    write_record(run.role("student") / "record.json", {"inputs": {"data": sha256}})
    rule: Json = {"mean": run.recipe.data.mean, "std": run.recipe.data.std, "lineage": {}, "out": mine / "bundle"}
    order = Order(role="student", arch="tiny", precisions=("fp32",), opset=18, **rule)
    assert export_detector(run, torch.nn.Identity(), order) == {"lineage": {"data": sha256}}
    monkeypatch.setattr("afpkd.data.coco_files.MOST_OPENED", 1)  # of very many images none is opened before
    with as_bombs(), pytest.raises(UserError, match=r"scene0\.png: cannot be read \(Image size .*decompression bomb"):
        export_detector(run, torch.nn.Identity(), order)
    (mine / "mine" / "test.json").write_text((mine / "mine" / "test.json").read_text() + "\n")
    with pytest.raises(UserError, match=rf"student/record\.json: trained on data {sha256[:12]}, what is read now is "):
        export_detector(run, torch.nn.Identity(), order)
