"""Recipes: every shipped one reads, what one inherits, and which part of it identifies which stage."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from afpkd.distillers.options import OPTIONS, Options
from afpkd.errors import UserError
from afpkd.models.outputs import Shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.wavelet import haar_dwt
from pipeline.recipe import Distill
from pipeline.recipe_networks import ForeignTeacher, TrainedTeacher
from pipeline.recipe_prompts import start_area
from pipeline.recipe_reader import load_recipe, recipe_names, teacher_weights
from pipeline.stages import reads_masks
from tests.pipeline.recipe_files import written

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
    "cifar100-resnet56-resnet20-half",
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
    path = written(tmp_path, 'extends = "default"\nseed = 4\n[distill]\nepochs = 3\n')
    name, recipe = load_recipe(path)
    base = load_recipe("default")[1]
    assert (name, recipe.seed, recipe.distill.epochs) == ("mine", 4, 3)
    assert recipe.distill.lr == base.distill.lr
    assert recipe.data == base.data


def test_another_method_leaves_the_options_of_the_old_one(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, 'extends = "default"\n[distill]\nmethod = "kd"\ntemperature = 2.0\n'))[1]
    assert recipe.distill.options() == {
        "temperature": 2.0,
        "kd_weight": 0.9,
        "task_weight": 0.1,
        "standardise": False,
    }


def test_another_teacher_leaves_the_training_of_the_old_one(tmp_path: Path) -> None:
    text = 'extends = "default"\n[teacher]\narch = "resnet56"\nweights = "w.pt"\n'
    teacher = load_recipe(written(tmp_path, text))[1].teacher
    assert isinstance(teacher, ForeignTeacher)
    assert teacher.min_top1 == 75.0
    back = f'extends = "{tmp_path}/mine.toml"\n[teacher]\nepochs = 2\n'
    assert isinstance(load_recipe(written(tmp_path, back, "back.toml"))[1].teacher, TrainedTeacher)


def test_options_that_two_methods_share_are_inherited(tmp_path: Path) -> None:
    text = 'extends = "default"\n[distill]\ngamma = 5.0\n'
    written(tmp_path, text, "base.toml")
    recipe = load_recipe(written(tmp_path, 'extends = "base.toml"\n[distill]\nmethod = "reviewkd"\n'))[1]
    assert recipe.distill.options()["gamma"] == 5.0


@pytest.mark.parametrize(("kappa", "kept"), [("", (4.0, False)), ("kappa = 0.5\n", (2.0, True))])
def test_a_logit_term_that_is_off_inherits_nothing_from_another_method(
    kappa: str, kept: tuple[float, bool], tmp_path: Path
) -> None:
    base = 'extends = "default"\n[distill]\nmethod = "kd"\ntemperature = 2.0\nstandardise = true\n'
    written(tmp_path, base, "base.toml")
    text = f'extends = "base.toml"\n[distill]\nmethod = "afpkd"\n{kappa}'
    options = load_recipe(written(tmp_path, text))[1].distill.options()
    assert (options["temperature"], options["standardise"]) == kept


def test_one_averaged_token_without_a_gate_is_taken(tmp_path: Path) -> None:
    text = 'extends = "default"\n[prompts]\nunited = false\ntokens = 1\ngate = false\n'
    assert load_recipe(written(tmp_path, text))[1].prompts.tokens == 1


def test_prompts_of_another_objective_leave_the_budget_behind(tmp_path: Path) -> None:
    written(tmp_path, 'extends = "default"\n[prompts]\narea = 0.5\narea_weight = 9\nepochs = 2\n', "base.toml")
    prompts = load_recipe(written(tmp_path, 'extends = "base.toml"\n[prompts]\nobjective = "task"\n'))[1].prompts
    assert (prompts.objective, prompts.area, prompts.area_weight, prompts.epochs) == ("task", 0.25, 30, 2)
    assert load_recipe(written(tmp_path, 'extends = "base.toml"\n[prompts]\nlr = 0.1\n'))[1].prompts.area == 0.5


@pytest.mark.parametrize("united", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_new_masks_keep_the_area_that_a_budget_is_held_to(tokens: int, united: bool) -> None:
    torch.manual_seed(0)
    prompts = FrequencyPrompts(Shapes([64], [(16, 16)], 64, 3), tokens=tokens, united=united)
    masks = prompts.pixel_masks(0, haar_dwt(torch.randn(4, 64, 16, 16), prompts.level_scales[0]))
    start = start_area(tokens, united=united)
    assert [mask.mean().item() for mask in masks] == pytest.approx([start] * len(masks), abs=2e-3)


@pytest.mark.parametrize(
    "keys", ["area = 1.0", "area = 0.92", "area = 0.95\narea_weight = 0", "tokens = 3\narea = 0.95"]
)
def test_a_budget_below_the_start_or_none_is_taken(keys: str, tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, f'extends = "default"\n[prompts]\n{keys}\n'))[1].prompts.area >= 0.92


def test_a_detector_is_distilled_by_freekd_with_the_keys_that_the_refusals_name(tmp_path: Path) -> None:
    text = 'extends = "bccd-fcos-cpu"\n[distill]\nmethod = "freekd"\n[prompts]\nobjective = "task"\n'
    with pytest.raises(UserError, match=r"set prompts\.united = false, prompts\.gate = false"):
        load_recipe(written(tmp_path, text))
    text += "united = false\ngate = false\n"
    with pytest.raises(UserError, match=r"prompts\.dropped: .* set it to 'zero'"):
        load_recipe(written(tmp_path, text))
    recipe = load_recipe(written(tmp_path, f'{text}dropped = "zero"\n'))[1]
    assert (recipe.distill.method, recipe.prompts.shape()["dropped"]) == ("freekd", "zero")


def test_foreign_weights_are_found_beside_the_recipe_or_under_afpkd_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFPKD_DATA", str(tmp_path / "data"))
    path = Path(written(tmp_path, 'extends = "default"\n[teacher]\narch = "resnet20"\nweights = "w.pt"\n'))
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
    "[prompts]\nmust_choose = false\n": {"student"},  # the prompts stay; whether they are good enough is asked anew
    "[export]\nopset = 19\n": {"export"},
    "[profile]\npreset = 'standard'\n": {"profile"},
    "[data]\nflip = false\n": {"teacher", "prompts", "student", "undistilled"},
    "[data]\nheldout = 500\n": {"teacher", "prompts", "student", "undistilled", "export"},
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
    base = load_recipe(written(tmp_path, 'extends = "default"\n', "a.toml"))[1]
    changed = load_recipe(written(tmp_path, f'extends = "default"\n{change}', "b.toml"))[1]
    found = {stage for stage in stages if base.stage_digest(stage) != changed.stage_digest(stage)}
    assert found == CHANGES[change]


def test_untuned_prompts_are_part_of_the_student_that_is_distilled_with_them(tmp_path: Path) -> None:
    digests = []
    for more in ("", "[prompts]\ntokens = 3\n", "[prompts]\nlr = 0.1\n"):
        text = f'extends = "default"\n[distill]\nmask = "untrained"\n{more}'
        digests.append(load_recipe(written(tmp_path, text))[1].stage_digest("student"))
    assert digests[0] == digests[2] != digests[1]  # how they would be tuned changes none


@pytest.mark.parametrize(("names", "half"), [("fp32", False), ("fp16", True), ("fp32 int8", True)])
def test_float16_is_in_all_files_but_the_float32_ones(names: str, *, half: bool, tmp_path: Path) -> None:
    text = f'extends = "default"\n[export]\nprecisions = {names.split()}\n'
    assert load_recipe(written(tmp_path, text))[1].export.half is half


def test_reading_a_recipe_needs_no_torch() -> None:
    program = "load_recipe('default'); sys.exit('torch' in sys.modules)"
    code = f"import sys; from pipeline.recipe_reader import load_recipe; {program}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changed", "read"),
    [({}, True), ({"mask": "shuffled"}, True), ({"mask": "constant"}, False), ({"mask": "untrained"}, False)],
)
def test_masks_must_choose_where_a_loss_reads_them(changed: dict[str, str], *, read: bool) -> None:
    assert reads_masks({"mu": 5.0, **changed}) == read
    assert not reads_masks({"mu": 0.0, **changed})


def test_masks_of_a_method_that_weighs_its_loss_by_another_name_are_read() -> None:
    """As one's own distiller may: its options promise no `mu`."""
    assert reads_masks({"strength": 1.0})


def test_an_option_of_ones_own_distiller_need_not_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(Options):
        levels: tuple[int, ...] = (0, 1)
        margin: float | None = None

    monkeypatch.setitem(OPTIONS, "imitation", Mine)
    for name, value in {"levels": (0, 1), "margin": None}.items():
        monkeypatch.setattr(Distill, name, value, raising=False)
    assert Distill(student="resnet8", method="imitation", epochs=1).options()["levels"] == (0, 1)
