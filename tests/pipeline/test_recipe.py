"""Recipes: every shipped one reads, every bad one is one line that names file, key, what was expected."""

import subprocess
import sys
from pathlib import Path

import pytest

from afpkd.errors import UserError
from pipeline.recipe_networks import ForeignTeacher, TrainedTeacher
from pipeline.recipe_reader import load_recipe, recipe_names, teacher_weights

SHIPPED = [
    "bccd-fcos-cpu",
    "cifar100-resnet110-resnet20",
    "cifar100-resnet110-resnet32",
    "cifar100-resnet32x4-resnet8x4",
    "cifar100-resnet32x4-shufflenetv1",
    "cifar100-resnet32x4-shufflenetv2",
    "cifar100-resnet50-mobilenetv2",
    "cifar100-resnet56-mobilenetv2-cpu",
    "cifar100-resnet56-resnet20",
    "cifar100-resnet56-resnet20-cpu",
    "cifar100-vgg13-mobilenetv2",
    "cifar100-vgg13-vgg8",
    "cifar100-wrn-40-2-shufflenetv1",
    "cifar100-wrn-40-2-wrn-16-2",
    "cifar100-wrn-40-2-wrn-40-1",
    "coco-fcos-r101-r50",
    "coco128-fcos-cpu",
    "default",
    "tinyimagenet-cpu",
    "tinyimagenet-resnet18-mobilenetv2",
    "tinyimagenet-resnet18-shufflenetv2",
]


def _write(folder: Path, text: str, name: str = "mine.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_shipped_recipes_read_and_describe_themselves() -> None:
    assert recipe_names() == SHIPPED
    assert all(load_recipe(name)[1].description for name in SHIPPED)


def test_the_literature_recipe_is_the_literatures() -> None:
    recipe = load_recipe("cifar100-resnet56-resnet20")[1]
    assert isinstance(recipe.teacher, TrainedTeacher)
    for training in (recipe.teacher, recipe.distill):
        assert (training.epochs, training.batch_size, training.lr, training.momentum) == (240, 64, 0.05, 0.9)
        assert (training.weight_decay, training.nesterov, training.milestones) == (5e-4, False, (150, 180, 210))


def test_extends_inherits_key_by_key(tmp_path: Path) -> None:
    path = _write(tmp_path, 'extends = "default"\nseed = 4\n[distill]\nepochs = 3\n')
    name, recipe = load_recipe(path)
    base = load_recipe("default")[1]
    assert (name, recipe.seed, recipe.distill.epochs) == ("mine", 4, 3)
    assert recipe.distill.lr == base.distill.lr
    assert recipe.data == base.data


def test_another_method_leaves_the_options_of_the_old_one(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, 'extends = "default"\n[distill]\nmethod = "kd"\ntemperature = 2.0\n'))[1]
    assert recipe.distill.options() == {
        "temperature": 2.0,
        "kd_weight": 0.9,
        "task_weight": 0.1,
        "standardise": False,
    }


def test_another_teacher_leaves_the_training_of_the_old_one(tmp_path: Path) -> None:
    text = 'extends = "default"\n[teacher]\narch = "resnet56"\nweights = "w.pt"\n'
    teacher = load_recipe(_write(tmp_path, text))[1].teacher
    assert isinstance(teacher, ForeignTeacher)
    assert teacher.min_top1 == 75.0
    back = f'extends = "{tmp_path}/mine.toml"\n[teacher]\nepochs = 2\n'
    assert isinstance(load_recipe(_write(tmp_path, back, "back.toml"))[1].teacher, TrainedTeacher)


def test_options_that_two_methods_share_are_inherited(tmp_path: Path) -> None:
    text = 'extends = "default"\n[distill]\ngamma = 5.0\n'
    _write(tmp_path, text, "base.toml")
    recipe = load_recipe(_write(tmp_path, 'extends = "base.toml"\n[distill]\nmethod = "reviewkd"\n'))[1]
    assert recipe.distill.options()["gamma"] == 5.0


DATA = '[data]\nname = "fashion_mnist_5k"\nmean = [0.3]\nstd = [0.3]\nheldout = 400\n'
TEACHER = '[teacher]\narch = "resnet20"\nepochs = 1\n'
DISTILL = '[distill]\nstudent = "resnet8"\nmethod = "kd"\nepochs = 1\n'
FOLDER = f'extends = "default"\n[data]\nname = "folder"\npath = "{Path(__file__).parent}"\nimage_size = 32\n'
BAD = {
    "unknown key": (
        'extends = "default"\n[distill]\nepoch = 3\n',
        "distill.epoch: unknown key: did you mean 'epochs'?",
    ),
    "option of another method": (f"{DATA}{TEACHER}{DISTILL}mu = 3.0\n", "distill.mu: unknown key"),
    "unknown section": ('extends = "default"\n[distil]\nepochs = 3\n', "distil: unknown key: did you mean 'distill'?"),
    "wrong type": (
        'extends = "default"\n[distill]\nepochs = "3"\n',
        'distill.epochs: input should be a valid number, got "3"',
    ),
    "boolean for a number": ('extends = "default"\nseed = true\n', "seed: input should be a valid integer, got true"),
    "missing key": (DATA + TEACHER + '[distill]\nmethod = "kd"\nepochs = 1\n', "distill.student: missing"),
    "missing section": (DATA + DISTILL, "teacher: missing"),
    "missing method": (DATA + TEACHER + '[distill]\nstudent = "resnet8"\nepochs = 1\n', "distill.method: missing"),
    "unknown model": (
        'extends = "default"\n[distill]\nstudent = "resnet9"\n',
        "distill.student: unknown model 'resnet9': did you mean 'resnet8'?",
    ),
    "unknown method": (
        'extends = "default"\n[distill]\nmethod = "afkpd"\n',
        "distill.method: unknown method 'afkpd': did you mean 'afpkd'?",
    ),
    "unknown data set": (
        'extends = "default"\n[data]\nname = "cifar10"\n',
        "data.name: unknown data set 'cifar10': did you mean 'cifar100'?",
    ),
    "channels": (
        'extends = "default"\n[data]\nmean = [0.5, 0.5, 0.5]\n',
        "data.mean: fashion_mnist_5k has 1 channel(s), got 3",
    ),
    "held-out": (
        'extends = "default"\n[data]\nheldout = 4000\n',
        "data.heldout: must lie between 0 and 4000 training images",
    ),
    "epochs of nothing": (
        'extends = "default"\n[teacher]\nepochs = 0\n',
        "teacher.epochs: must be greater than 0, got 0",
    ),
    "milestones without multistep": (
        'extends = "default"\n[distill]\nmilestones = [1]\n',
        "distill.milestones: only schedule = 'multistep' has them",
    ),
    "choice": (
        'extends = "default"\n[profile]\npreset = "fast"\n',
        "profile.preset: input should be 'quick', 'standard' or 'mlperf'",
    ),
    "no single stream": (
        'extends = "default"\n[profile]\nscenarios = ["offline"]\n',
        "profile.scenarios: single_stream and each other at most once, got ['offline']",
    ),
    "unknown scenario": (
        'extends = "default"\n[profile]\nscenarios = ["single_stream", "ofline"]\n',
        "profile.scenarios.1: input should be 'single_stream', 'periodic' or 'offline'",
    ),
    "precision": (
        'extends = "default"\n[export]\nprecisions = ["fp4"]\n',
        "export.precisions.0: input should be 'fp32', 'fp16' or 'int8'",
    ),
    "old opset": (
        'extends = "default"\n[export]\nopset = 17\n',
        "export.opset: 18 to 23 can be exported, got 17; legacy = true writes opset 17",
    ),
    "legacy with modelopt": (
        'extends = "default"\n[export]\nlegacy = true\nquantizer = "modelopt"\ncalibration = "minmax"\n',
        "export.legacy: modelopt's int8 has opset 19 at least",
    ),
    "mse with modelopt": (
        'extends = "default"\n[export]\nquantizer = "modelopt"\n',
        "export.calibration: modelopt has minmax and entropy",
    ),
    "few calibration images": (
        'extends = "default"\n[export]\ncalibration_images = 100\n',
        "export.calibration_images: 512 at least, got 100",
    ),
    "exclusion without int8": (
        'extends = "default"\n[export]\nprecisions = ["fp32"]\nint8_exclude = ["conv1"]\n',
        "export.int8_exclude: precisions has no int8",
    ),
    "negative budget": ('extends = "default"\n[export]\nmax_drop = -1.0\n', "export.max_drop: must lie between 0"),
    "weights and training": (
        DATA + DISTILL + '[teacher]\narch = "resnet20"\nweights = "w.pt"\nepochs = 2\n',
        "teacher.weights: no file at",
    ),
    "published weights of ours": (
        'extends = "default"\n[distill]\nweights = "default"\n',
        "distill.weights: 'default': timm and torchvision publish weights, for resnet8 name a file",
    ),
    "no weights and no training": (
        DATA + DISTILL + '[teacher]\narch = "timm:resnet10t"\nweights = "none"\n',
        "teacher.weights: 'none' starts at random: say how to train it",
    ),
    "stages of ours": (
        'extends = "default"\n[teacher]\nstages = ["layer1"]\n',
        "teacher.stages: those of resnet20 are",
    ),
    "a foreign network compiled": (
        'extends = "default"\n[distill]\nstudent = "torchvision:resnet18"\ncompile = true\n',
        "distill.compile: not for networks that are not ours",
    ),
    "half a normalisation": (
        'extends = "default"\n[teacher]\nmean = [0.5]\n',
        "teacher.mean: give mean and std, or neither",
    ),
    "no such file": (
        'extends = "default"\n[distill]\nstudent = "net.py:make"\n',
        "distill.student: no file at",
    ),
    "no such folder": (
        'extends = "default"\n[data]\nname = "folder"\npath = "photos"\nimage_size = 32\n',
        "data.path: no folder at",
    ),
    "keys of another data set": (
        f"{FOLDER}heldout = 4\n",
        "data.heldout: unknown key: did you mean 'heldout_share'?",
    ),
    "train without test": (
        f'{FOLDER}train = "a"\n',
        "data.train: train and test name folders together",
    ),
    "rotation": ('extends = "default"\n[data]\nrotation = -1\n', "data.rotation: must lie between 0 and 180"),
    "infinite": ('extends = "default"\n[distill]\nlr = inf\n', "dates, inf and nan are no values of a recipe"),
    "not TOML": ("[distill\n", "not a TOML file"),
    "circle": ('extends = "mine.toml"\n', "extends: goes in a circle: mine.toml -> mine.toml"),
    "unknown parent": ('extends = "defualt"\n', "unknown recipe 'defualt': did you mean 'default'?"),
    "parent of a wrong type": ("extends = 3\n", "extends: a recipe's name or path was expected, got 3"),
    "negative seed": ('extends = "default"\nseed = -1\n', "seed: must lie between 0 and"),
    "momentum": (
        'extends = "default"\n[distill]\nmomentum = -1.0\n',
        "distill.momentum: must lie between 0 and 1, got -1",
    ),
    "negative weight": ('extends = "default"\n[distill]\nmu = -5.0\n', "distill.mu: must lie between 0 and"),
    "nothing to distil": (
        'extends = "default"\n[distill]\nmu = 0.0\ngamma = 0.0\n',
        "distill.method: every loss of afpkd has weight 0",
    ),
    "zero temperature": (
        'extends = "default"\n[distill]\nmethod = "kd"\ntemperature = 0.0\n',
        "distill.temperature: must lie between",
    ),
    "one token": (
        'extends = "default"\n[prompts]\ntokens = 1\noverlap_weight = 1.0\n',
        "prompts.overlap_weight: a single token",
    ),
    "compiled prompts": ('extends = "default"\n[prompts]\ncompile = true\n', "prompts.compile: prompts act inside"),
    "batch": (
        'extends = "default"\n[distill]\nbatch_size = 4000\n',
        "distill.batch_size: 4000 is more than the 3600 images trained on",
    ),
    "method of a wrong type": (
        'extends = "default"\n[distill]\nmethod = ["kd"]\n',
        "distill.method: input should be a",
    ),
    "typo in expected": (
        'extends = "default"\n[expected.x]\ntopl = 3.0\nsource = "y"\n',
        "expected.x.topl: unknown key",
    ),
    "section of a wrong type": ('extends = "default"\ndistill = 3\n', "distill: input should be"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_one_clear_line(case: str, tmp_path: Path) -> None:
    text, said = BAD[case]
    with pytest.raises(UserError) as caught:
        load_recipe(_write(tmp_path, text))
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    if "parent" not in case or "wrong type" in case:
        assert message.startswith("mine.toml: ")


def test_missing_and_unknown_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="unknown recipe 'defalt': did you mean 'default'"):
        load_recipe("defalt")


def test_a_file_with_a_shipped_recipes_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a shipped recipe has this name"):
        load_recipe(_write(tmp_path, 'extends = "default"\n', "default.toml"))


def test_foreign_weights_are_found_beside_the_recipe_or_under_afpkd_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFPKD_DATA", str(tmp_path / "data"))
    path = Path(_write(tmp_path, 'extends = "default"\n[teacher]\narch = "resnet20"\nweights = "w.pt"\n'))
    recipe = load_recipe(str(path))[1]
    with pytest.raises(UserError, match=r"mine\.toml: teacher\.weights: no file at .*w\.pt or .*data/w\.pt"):
        teacher_weights(recipe, path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.pt").touch()
    assert teacher_weights(recipe, path) == tmp_path / "data" / "w.pt"
    (tmp_path / "w.pt").touch()
    assert teacher_weights(recipe, path) == tmp_path / "w.pt"


CHANGES = {
    "[distill]\nepochs = 3\n": {"student", "undistilled"},
    "[distill]\nmu = 1.0\n": {"student"},
    "[distill]\nmethod = 'kd'\n": {"student"},
    "[teacher]\nepochs = 3\n": {"teacher"},
    "[teacher]\nmin_top1 = 3\n": set(),
    "[prompts]\ntokens = 3\n": {"prompts"},
    "[export]\nopset = 19\n": {"export"},
    "[profile]\npreset = 'standard'\n": {"profile"},
    "[data]\nflip = false\n": {"teacher", "prompts", "student", "undistilled"},
    "[data]\nmean = [0.5]\n": {"teacher", "prompts", "student", "undistilled", "export"},
    "[export]\nint8_exclude = ['conv1']\n": {"export"},
    "[export]\nmax_drop = 2.0\n": {"export"},
    "[export]\nlegacy = true\n": {"export"},
    "seed = 1\n": {"teacher", "prompts", "student", "undistilled", "export"},  # it draws the calibration images too
    "seed = 1\n[export]\nprecisions = ['fp32', 'fp16']\n": {"teacher", "prompts", "student", "undistilled", "export"},
    "description = 'x'\n": {"report"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stage_is_identified_by_its_own_part_alone(change: str, tmp_path: Path) -> None:
    stages = ("teacher", "prompts", "student", "undistilled", "export", "profile", "report")
    base = load_recipe(_write(tmp_path, 'extends = "default"\n', "a.toml"))[1]
    changed = load_recipe(_write(tmp_path, f'extends = "default"\n{change}', "b.toml"))[1]
    found = {stage for stage in stages if base.stage_digest(stage) != changed.stage_digest(stage)}
    assert found == CHANGES[change]


def test_reading_a_recipe_needs_no_torch() -> None:
    program = "load_recipe('default'); sys.exit('torch' in sys.modules)"
    code = f"import sys; from pipeline.recipe_reader import load_recipe; {program}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
