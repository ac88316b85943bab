"""Every bad recipe is one line that names file, key, what was expected."""

from pathlib import Path

import pytest

from afpkd.errors import UserError
from pipeline.recipe_reader import load_recipe
from tests.pipeline.recipe_files import written

DATA = '[data]\nname = "fashion_mnist_5k"\nmean = [0.3]\nstd = [0.3]\nheldout = 400\n'
TEACHER = '[teacher]\narch = "resnet20"\nepochs = 1\n'
DISTILL = '[distill]\nstudent = "resnet8"\nmethod = "kd"\nepochs = 1\n'
FOLDER = f'extends = "default"\n[data]\nname = "folder"\npath = "{Path(__file__).parent}"\nimage_size = 32\n'
IDLE = 'extends = "default"\n[distill]\nmu = 0.0\ngamma = 0.0\nkappa = 1.0\n'
BAD = {
    "unknown key": (
        'extends = "default"\n[distill]\nepoch = 3\n',
        "distill.epoch: unknown key: did you mean 'epochs'?",
    ),
    "option of another method": (f"{DATA}{TEACHER}{DISTILL}mu = 3.0\n", "distill.mu: unknown key"),
    "unknown rival": ('extends = "default"\n[rivals.catk]\n', "rivals.catk: unknown key: did you mean 'catkd'?"),
    "option of another rival": (
        'extends = "default"\n[rivals.catkd]\nbetta = 1.0\n',
        "rivals.catkd.betta: unknown key: did you mean 'beta'?",
    ),
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
    **{
        f"FreeKD with prompts that {words}": (
            f'extends = "default"\n[distill]\nmethod = "freekd"\n[prompts]\n{keys}',
            "distill.method: 'freekd' has other prompts than these: set prompts.united = false, prompts.gate = false",
        )
        for words, keys in (
            ("are AFPKD's", ""),
            ("have a gate", "united = false\n"),
            ("are united", "gate = false\n"),
        )
    },
    "a local branch beside nothing": (
        'extends = "default"\n[distill]\nfusion = "1x1"\nlocal_branch = true\n',
        "distill.local_branch: stands beside a fused map: needs fusion = 'top-down'",
    ),
    **{
        f"{key} of a logit term that is off": (
            f'extends = "default"\n[distill]\n{key} = {value}\n',
            f"distill.{key}: kappa is 0, so there is no logit term: leave it at {default}",
        )
        for key, value, default in (("temperature", "2.0", "4"), ("standardise", "true", "false"))
    },
    **{
        f"{key} of a frequency loss that is off": (
            f'extends = "default"\n[distill]\nmu = 0.0\n{key} = {value}\n',
            f"distill.{key}: mu is 0, so there is no frequency loss: leave it at {default}",
        )
        for key, value, default in (
            ("mask", '"constant"', '"prompts"'),
            ("bands", '"low"', '"all"'),
            ("normalise", '"band"', '"level"'),
            ("position_weight", "false", "true"),
        )
    },
    "fusion of maps that nothing compares": (f"{IDLE}fusion = '1x1'\n", "distill.fusion: mu and gamma are 0"),
    "a rival's option that does nothing": (
        'extends = "default"\n[rivals.afpkd]\nstandardise = true\n',
        "rivals.afpkd.standardise: kappa is 0",
    ),
    "class maps of no pixel": (
        'extends = "default"\n[distill]\nmethod = "catkd"\npooled_size = 0\n',
        "distill.pooled_size: must lie between 1 and 1e+06, got 0",
    ),
    "a gate of one averaged token": (
        'extends = "default"\n[prompts]\nunited = false\ntokens = 1\n',
        "prompts.gate: it weighs averaged tokens against each other, and there is one: set it to false",
    ),
    "another image under averaged masks": (
        'extends = "default"\n[prompts]\nunited = false\ndropped = "swapped"\n',
        "prompts.dropped: averaged masks are doubled, and what fills in would come on top: set it to 'zero', or united",
    ),
    "a budget that nothing asks for": (
        'extends = "default"\n[prompts]\nobjective = "task"\narea = 0.5\n',
        "prompts.area: only objective = 'choose' has a budget of area: leave it at 0.25",
    ),
    "a budget above what masks start with": (
        'extends = "default"\n[prompts]\narea = 0.95\n',
        "prompts.area: masks of 2 token(s) start with an area of 0.9277: a budget above teaches nothing: set less",
    ),
    "a budget of averaged masks": (
        'extends = "default"\n[prompts]\nunited = false\narea = 0.5\n',
        "prompts.area: masks of 2 token(s) start with an area of 0.5: a budget above",
    ),
    "the weight of a budget that nothing asks for": (
        'extends = "default"\n[prompts]\nobjective = "task"\narea_weight = 0\n',
        "prompts.area_weight: only objective = 'choose' has a budget of area: leave it at 30",
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
    "a teacher's std of zero": (
        'extends = "default"\n[teacher]\nmean = [0.5]\nstd = [0.0]\n',
        "teacher.std: must be positive, got (0.0,)",
    ),
    "a teacher's mean of another length than its std": (
        'extends = "default"\n[teacher]\nmean = [0.5]\nstd = [0.3, 0.3]\n',
        "teacher.mean: 1 values, and std has 2: one a channel of both",
    ),
    "a teacher's mean of no channel": (
        'extends = "default"\n[teacher]\nmean = []\nstd = []\n',
        "teacher.mean: 0 values, and std has 0: one a channel of both",
    ),
    "a teacher's mean of more channels than the images": (
        'extends = "default"\n[teacher]\nmean = [0.5, 0.5, 0.5]\nstd = [0.3, 0.3, 0.3]\n',
        "teacher.mean: the images have 1 channel(s), got 3: one a channel, or one for all",
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
        load_recipe(written(tmp_path, text))
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


@pytest.mark.parametrize(
    "name", ["a b{x}.toml", "a}.toml", "..toml", "...toml", ".mine.toml", "a\nb.toml", "caf\udce9.toml"]
)
def test_a_name_that_no_run_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a dot in front, braces or unprintable characters, and runs") as caught:
        load_recipe(written(tmp_path, 'extends = "default"\n', name))
    assert caught.value.code == "E_RECIPE_NAME"


def test_a_name_with_a_space_and_letters_of_other_languages_is_one(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, 'extends = "default"\n', "mon été.v2.toml"))[0] == "mon été.v2"


def test_a_file_with_a_shipped_recipes_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a shipped recipe has this name"):
        load_recipe(written(tmp_path, 'extends = "default"\n', "default.toml"))
