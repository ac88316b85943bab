"""Own images, networks and weights in a recipe: what is part of a stage's identity, what is inherited, refused."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from afpkd.checkpoint import save_weights
from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.record import Json, sha256_of
from export.half import LEGACY_OPSET
from pipeline.cli import app
from pipeline.evaluation import evaluate_path
from pipeline.networks import build_network, facts_beside_weights
from pipeline.recipe_folder import FolderData, folder_in
from pipeline.recipe_networks import TrainedTeacher
from pipeline.recipe_reader import load_recipe
from pipeline.stages import train_teacher, train_undistilled
from pipeline.sweep import points_of, write_points
from pipeline.workspace import open_run
from tests.pipeline.recipe_files import PHOTOS, written


def _digests(file: str) -> dict[str, str]:
    """Identity of each stage as a new process sees it: files are read once a process."""
    code = "import json, sys; from pipeline.recipe_reader import load_recipe; recipe = load_recipe(sys.argv[1])[1]"
    stages = ("teacher", "prompts", "student", "undistilled", "export", "profile")
    code += f"; print(json.dumps({{stage: recipe.stage_digest(stage) for stage in {stages}}}))"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage, found in before.items() if after[stage] != found}


def test_own_images_are_part_of_what_reads_them_and_their_place_is_not(photos: Path) -> None:
    before = _digests(written(photos, PHOTOS))
    (photos / "elsewhere").mkdir()
    (photos / "photos").rename(photos / "elsewhere" / "moved")
    moved = PHOTOS.replace('"photos"', '"elsewhere/moved"')
    assert _changed(before, _digests(written(photos, moved))) == set()
    Image.new("RGB", (16, 8), (99, 0, 0)).save(photos / "elsewhere" / "moved" / "ant" / "0.png")
    assert _changed(before, _digests(written(photos, moved))) == {*before} - {"profile"}
    assert load_recipe(written(photos, moved))[1].data.spec.image_size == (8, 16)


def test_own_files_are_part_of_what_they_make(photos: Path) -> None:
    (photos / "net.py").write_text("def make(): ...\n")
    (photos / "start.pt").write_bytes(b"1")
    text = PHOTOS + '[distill]\nstudent = "net.py:make"\nweights = "start.pt"\n'
    before = _digests(written(photos, text))
    (photos / "net.py").write_text("def make(): return 1\n")
    after = _digests(written(photos, text))
    assert _changed(before, after) == {"student", "undistilled"}
    (photos / "start.pt").write_bytes(b"2")
    assert _changed(after, _digests(written(photos, text))) == {"student", "undistilled"}
    teacher = PHOTOS + '[teacher]\narch = "torchvision:resnet18"\nepochs = 1\n'
    ways = ("", 'weights = "default"\n', 'weights = "start.pt"\n', "mean = [0.1, 0.2, 0.3]\nstd = [1.0, 1.0, 1.0]\n")
    found = [_digests(written(photos, teacher + way))["teacher"] for way in (*ways, 'stages = ["layer1"]\n')]
    assert len(set(found)) == 5


SCENES = """extends = "coco128-fcos-cpu"
[data]
train = { annotations = "PLACE/all.json", images = "PLACE/images" }
test = { annotations = "PLACE/all.json", images = "PLACE/images" }
heldout = 1
"""


def test_own_scenes_are_part_of_what_reads_them_and_their_place_is_not(tmp_path: Path) -> None:
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "a" / "all.json").write_text("{}")
    Image.new("RGB", (16, 8)).save(tmp_path / "a" / "images" / "1.png")
    here, there = SCENES.replace("PLACE", "a"), SCENES.replace("PLACE", "moved/b")
    before = _digests(written(tmp_path, here))
    (tmp_path / "moved").mkdir()
    (tmp_path / "a").rename(tmp_path / "moved" / "b")
    assert _changed(before, _digests(written(tmp_path, there))) == set()
    reads = {*before} - {"profile"}
    for name, content in (("all.json", "{ }"), ("images/1.png", "another"), ("images/2.png", "one more")):
        (tmp_path / "moved" / "b" / name).write_text(content)
        after = _digests(written(tmp_path, there))
        assert _changed(before, after) == reads, name
        before = after
    assert _changed(before, _digests(written(tmp_path, there + "score = 0.2\n"))) == reads
    for line in ("repeat = 2\n", "range_divisor = 3.0\n"):  # of the training alone
        assert _changed(before, _digests(written(tmp_path, there + line))) == reads - {"export"}, line


def test_a_backbones_file_is_part_of_what_starts_with_it(tmp_path: Path) -> None:
    text = SCENES.replace("PLACE", "nowhere") + '[teacher]\nbackbone = "r18.pt"\n'
    nothing = _digests(written(tmp_path, text))  # what is missing is said by the stage that reads it
    (tmp_path / "r18.pt").write_bytes(b"1")
    before = _digests(written(tmp_path, text))
    (tmp_path / "r18.pt").write_bytes(b"2")
    assert _changed(nothing, before) == _changed(before, _digests(written(tmp_path, text))) == {"teacher"}


@pytest.mark.parametrize("section", ["teacher", "distill"])
def test_weights_of_a_whole_detector_do_without_an_inherited_backbone(section: str, tmp_path: Path) -> None:
    (tmp_path / "t.pth").touch()
    base = SCENES.replace("PLACE", "nowhere") + '[teacher]\nbackbone = "torchvision:R"\n'
    written(tmp_path, base + '[distill]\nbackbone = "torchvision:R"\n', "base.toml")
    mine = f'extends = "base.toml"\n[{section}]\nweights = "t.pth"\n'
    ours = getattr(load_recipe(written(tmp_path, mine))[1], section)
    assert (Path(ours.weights).name, getattr(ours, "backbone", "none")) == ("t.pth", "none")
    starts = 'weights = "none"\nbackbone = "torchvision:R"\n'
    kept = load_recipe(written(tmp_path, f'extends = "base.toml"\n[distill]\n{starts}'))[1]
    assert getattr(kept.distill, "backbone", None) == "torchvision:R"
    if section == "distill":
        with pytest.raises(UserError, match=r"backbone: torchvision:R would replace .*t\.pth: leave one out, or weigh"):
            load_recipe(written(tmp_path, mine + 'backbone = "torchvision:R"\n'))


def test_another_network_of_the_same_tensors_has_another_file(photos: Path) -> None:
    """Else nothing that was made from a network would be made anew from another."""
    for name in ("net", "other"):
        (photos / f"{name}.py").write_text(f"def make(): {name}\n")
    ours: Json = {"arch": "resnet8", "stages": [], "own": None}
    others: list[Json] = [
        ours,
        {**ours, "own": [[0.1], [1.0]]},
        {**ours, "own": [[0.2], [1.0]]},
        {**ours, "arch": "timm:resnet18"},
        {**ours, "arch": "timm:resnet18", "stages": ["layer1"]},
        {**ours, "arch": f"{photos / 'net.py'}:make"},
        {**ours, "arch": f"{photos / 'other.py'}:make"},
    ]
    kept = {"w": torch.zeros(2)}
    files = [photos / f"{number}.safetensors" for number in range(len(others))]
    for file, network in zip(files, others, strict=True):
        save_weights(file, kept, facts_beside_weights(network))
    assert len({sha256_of(file) for file in files}) == len(others)
    save_weights(photos / "again.safetensors", kept)
    assert sha256_of(photos / "again.safetensors") == sha256_of(files[0])


def test_a_teacher_taken_in_otherwise_is_another_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = build_model("resnet8", num_classes=10, in_channels=1, image_size=(28, 28)).state_dict()
    save_weights(tmp_path / "w.safetensors", state)
    found = []
    for mean in (0.2, 0.3):
        text = 'extends = "default"\n[teacher]\narch = "resnet8"\nweights = "w.safetensors"\nstd = [1.0]\n'
        recipe = written(tmp_path, f"{text}mean = [{mean}]\n", f"taken{mean}.toml")
        record = train_teacher(open_run(recipe, tmp_path / "runs"))
        found.append(record["outputs"]["model.safetensors"])
    assert len(set(found)) == 2


def test_a_bare_file_is_scored_as_the_teacher_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build_model("resnet8", num_classes=10, in_channels=1, image_size=(28, 28)).state_dict()
    own = list[object]()

    def seen(network: Json, **how: Any) -> Any:
        own.append(network["own"])
        return build_network(network, **how)

    monkeypatch.setattr("pipeline.evaluation.build_network", seen)
    text = 'extends = "default"\n[teacher]\narch = "resnet8"\nweights = "w.safetensors"\nmean = [0.9]\nstd = [1.5]\n'
    bare = {"arch": "resnet8", "data": "fashion_mnist_5k", "recipe": written(tmp_path, text)}
    for name in ("w.safetensors", "other.safetensors"):
        save_weights(tmp_path / name, state)
        evaluate_path(tmp_path / name, **bare)
    assert own == [[[0.9], [1.5]], None], "whose the other file is, nobody says"
    assert "normalised as recipe mine has its teacher: mean (0.9,), std (1.5,)" in capsys.readouterr().err


@pytest.mark.parametrize("holds", ["record.json", "manifest.json"])
def test_a_role_and_a_bundle_refuse_what_they_would_not_look_at(holds: str, tmp_path: Path) -> None:
    (tmp_path / holds).write_text("{}")
    with pytest.raises(UserError, match="--data and --recipe: would do nothing"):
        evaluate_path(tmp_path, arch=None, data="cifar100", recipe="default")


def test_the_images_of_a_record_are_those_of_its_recipe(photos: Path) -> None:
    text = PHOTOS + "mean = [0.1, 0.2, 0.3]\nstd = [1.0, 1.0, 1.0]\n"
    data = load_recipe(written(photos, text))[1].data
    assert isinstance(data, FolderData)
    assert folder_in(json.loads(json.dumps({"folder": dataclasses.asdict(data)}))) == data
    assert (data.num_heldout(100), data.num_heldout(2)) == (10, 1)


def test_weights_and_training_start_there_and_a_later_recipe_keeps_them(photos: Path) -> None:
    base = PHOTOS + '[teacher]\narch = "torchvision:resnet18"\nweights = "default"\nepochs = 1\n'
    written(photos, base, "base.toml")
    teacher = load_recipe(written(photos, 'extends = "base.toml"\n[teacher]\nepochs = 3\n'))[1].teacher
    assert isinstance(teacher, TrainedTeacher)
    assert (teacher.weights, teacher.epochs) == ("default", 3)


def test_published_weights_stay_with_their_pair(tmp_path: Path) -> None:
    base = 'extends = "cifar100-resnet32x4-resnet8x4"\n[distill]\nmethod = "catkd"\n'
    assert load_recipe(written(tmp_path, base))[1].distill.options()["beta"] == 15.0
    assert load_recipe(written(tmp_path, base + "beta = 3.0\n"))[1].distill.options()["beta"] == 3.0
    assert load_recipe(written(tmp_path, base + 'student = "resnet20"\n'))[1].distill.options()["beta"] == 0.7
    other = tmp_path / "other.toml"
    other.write_text('extends = "cifar100-resnet32x4-resnet8x4"\n[distill]\nstudent = "resnet20"\n')
    later = 'extends = "other.toml"\n[distill]\nmethod = "catkd"\n'
    assert load_recipe(written(tmp_path, later))[1].distill.options()["beta"] == 0.7


def test_published_numbers_stay_with_their_pair(tmp_path: Path) -> None:
    base = 'extends = "cifar100-resnet56-resnet20"\n'
    assert load_recipe(written(tmp_path, base + "seed = 3\n"))[1].expected
    assert not load_recipe(written(tmp_path, base + '[distill]\nstudent = "resnet8"\n'))[1].expected
    own = base + '[distill]\nstudent = "resnet8"\n[expected.kd]\ntop1 = 1.0\nsource = "us"\n'
    assert list(load_recipe(written(tmp_path, own))[1].expected) == ["kd"]


@pytest.mark.parametrize(
    ("precisions", "more", "opsets", "half"),
    [
        (["fp32"], "", (18,), False),
        (["fp32"], "opset = 20\nlegacy = true\n", (20, LEGACY_OPSET), False),
        (["fp16"], "", (18,), True),
    ],
)
def test_whatever_is_exported_is_tried_before_any_training(
    photos: Path, monkeypatch: pytest.MonkeyPatch, precisions: list[str], more: str, opsets: tuple[int, ...], half: bool
) -> None:
    def tried(*_: object, opsets: tuple[int, ...], half: bool, **__: object) -> None:
        raise UserError("E_EXPORT_TORCH", f"tried {opsets} {half}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(photos / "cache"))  # where nothing is known to export
    monkeypatch.setattr("export.to_onnx.dry_run_export", tried)
    text = PHOTOS + "[distill]\nbatch_size = 2\n[teacher]\nbatch_size = 2\n[prompts]\nbatch_size = 2\n"
    run = open_run(written(photos, f"{text}[export]\nprecisions = {precisions}\n{more}"), photos / "runs")
    with pytest.raises(UserError, match=re.escape(f"tried {opsets} {half}")):
        train_undistilled(run)


def test_a_recipe_that_changes_while_its_run_goes_on_stops_it(tmp_path: Path) -> None:
    recipe = written(tmp_path, 'extends = "default"\n')
    decoded = load_recipe(recipe)[1]
    verbs = {"train-teacher": "teacher", "share-stage teacher --from x": "teacher", "export": "export"}
    verbs |= {"train-undistilled": "undistilled", "profile": "profile"}
    digests = {verb: decoded.stage_digest(stage) for verb, stage in verbs.items()}
    written(tmp_path, 'extends = "default"\nseed = 3\n[profile]\npreset = "standard"\n')
    for verb, digest in digests.items():
        words = [*verb.split(), "--recipe", recipe, "--runs", str(tmp_path / "runs"), "--digest", digest]
        done = CliRunner().invoke(app, words)
        assert "mine.toml: changed while the run went on" in str(done.exception), verb
    assert not list((tmp_path / "runs").glob("*/*/record.json"))


@pytest.mark.parametrize("place", ["net.py", "./nets/net.py", "../net.py"])
def test_a_point_with_an_own_network_keeps_what_is_known_of_its_pair(place: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "nets").mkdir(parents=True)
    (tmp_path / "mine" / place).write_text("def student(): pass")
    recipe = tmp_path / "mine" / "own.toml"
    rival, paper = "[rivals.kd]\ntemperature = 9.0\n", '[expected.paper]\ntop1 = 90.0\nsource = "me"\n'
    recipe.write_text(f'extends = "default"\n[distill]\nstudent = "{place}:student"\n{rival}{paper}')
    (file,) = write_points(points_of(str(recipe), ["distill.method=kd"], 1), tmp_path / "runs")
    point = load_recipe(file)[1]
    assert point.distill.options()["temperature"] == 9.0
    assert point.expected["paper"].top1 == 90.0
    (tmp_path / "mine" / "other.py").write_text("def student(): pass")
    text = f'extends = "{recipe}"\n[distill]\nstudent = "{tmp_path}/mine/other.py:student"\nmethod = "kd"\n'
    (tmp_path / "another.toml").write_text(text)
    other = load_recipe(str(tmp_path / "another.toml"))[1]
    assert (other.distill.options()["temperature"], other.expected) == (4.0, {}), "another network is another pair"
