"""What a newcomer does wrong, through the whole command line: one line, its mend, its code, exit 2."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from afpkd.models import build_model
from pipeline import cli, graph
from pipeline.explain import ERRORS
from pipeline.locks import locked

ROOT = Path(__file__).parents[2]
RECIPES = {
    "key": 'extends = "default"\n[distil]\nepochs = 1\n',
    "syntax": "extends = default\n",
    "type": 'extends = "default"\n[distill]\nepochs = "many"\n',
    "range": 'extends = "default"\n[distill]\nlr = -1\n',
    "clash": 'extends = "default"\n[distill]\nbatch_size = 4000\n',
    "parent": 'extends = "defualt"\n',
    "path": 'extends = "default"\n[teacher]\nweights = "mine.pth"\n',
    "function": 'extends = "default"\n[distill]\nstudent = "net.py:student"\n',
}
MISTAKES: dict[str, tuple[str, str, str]] = {
    "recipe's name": ("run distill --recipe defualt", "E_RECIPE_NAME", "did you mean 'default'?"),
    "recipe's path": (
        "run distill --recipe none.toml",
        "E_TOML",
        "none.toml: No such file or directory: name a TOML file",
    ),
    "recipe's key": ("run distill --recipe key.toml", "E_RECIPE_KEY", "distil: unknown key: did you mean 'distill'?"),
    "TOML": ("run distill --recipe syntax.toml", "E_TOML", "(at line 1, column 11): mend it there: text stands in"),
    "type": (
        "run distill --recipe type.toml",
        "E_RECIPE_VALUE",
        'distill.epochs: input should be a valid number, got "many"',
    ),
    "range": ("run distill --recipe range.toml", "E_RECIPE_VALUE", "distill.lr: must be greater than 0, got -1"),
    "clash": ("run distill --recipe clash.toml", "E_RECIPE_VALUE", "clash.toml: distill.batch_size: 4000 is more"),
    "parent": ("run distill --recipe parent.toml", "E_RECIPE_NAME", "parent.toml: extends: unknown recipe 'defualt'"),
    "weights' path": ("run distill --recipe path.toml", "E_RECIPE_PATH", "put it there or set AFPKD_DATA"),
    "own network": (
        "train-undistilled --recipe function.toml",
        "E_NETWORK_FILE",
        "no function 'student' (it has: studnt)",
    ),
    "no data": ("train-undistilled --recipe tinyimagenet-cpu", "E_DATA_MISSING", "or set AFPKD_DATA"),
    "data cut short": (
        "train-undistilled --recipe cifar100-resnet56-resnet20",
        "E_DATA_BROKEN",
        "to download it again",
    ),
    "no GPU": ("train-undistilled --train-device cuda", "E_TRAIN_DEVICE", "use cpu or auto"),
    "GPUs": ("run distill --train-processes 3", "E_TRAIN_PROCESSES", "use one of 1, 2, 4"),
    "cluster": ("run distill --cluster slrm", "E_CLUSTER", "did you mean 'slurm'?"),
    "device": ("run profile --device orin1", "E_DEVICE_NAME", "known are away, local, local-gpu"),
    "no GPU to measure on": (
        "run profile --device local-gpu",
        "E_NO_DRIVER",
        "no NVIDIA GPU in /dev: install its driver",
    ),
    "devices.toml": ("devices list", "E_DEVICES_FILE", "away.hots: unknown key: did you mean 'host'?"),
    "nobody there": ("devices probe away", "E_UNREACHABLE", "is it on, and does sshd listen there?"),
    "deploy before export": ("deploy --device away", "E_RUN_MISSING", "run `make export` first"),
    "export before distill": (
        "export",
        "E_RUN_MISSING",
        "run the stage that makes it first (`make distill export profile`",
    ),
    "profile before export": ("profile", "E_RUN_MISSING", "run the stage that makes it first"),
    "report before all": ("report", "E_RUN_MISSING", "nothing to report yet: run `make distill RECIPE=default`"),
    "no bundle": ("bundle verify nowhere", "E_RUN_MISSING", "run the stage that makes it first"),
    "a file as bundle": ("bundle verify text.onnx", "E_RECORD", "name a record (.json), or the folder that holds it"),
    "a folder as record": ("reproduce data", "E_RECORD", "name a record (.json), or the folder that holds it"),
    "no run to watch": ("watch nowhere", "E_RUN_MISSING", "name a run's folder"),
    "no run to verify": ("verify nowhere", "E_RUN_MISSING", "name a run, such as runs/default"),
    "no run to compare": ("compare nowhere data", "E_RUN_MISSING", "name one, such as runs/default"),
    "nothing to evaluate": ("evaluate nowhere.pth", "E_EVALUATE", "name one, such as runs/default/student"),
    "weights alone": ("evaluate other.safetensors", "E_EVALUATE", "needs --arch NAME and --data NAME"),
    "weights of another network": (
        "evaluate other.safetensors --arch resnet20 --data fashion_mnist_5k",
        "E_WEIGHTS_MISMATCH",
        "name the network that they were trained with",
    ),
    "no weights at all": (
        "evaluate text.pth --arch resnet8 --data fashion_mnist_5k",
        "E_WEIGHTS_FILE",
        "not a file of plain tensors: save one with torch.save(model.state_dict(), FILE)",
    ),
    "architecture": (
        "evaluate other.safetensors --arch resnet9 --data cifar100",
        "E_NETWORK_NAME",
        "did you mean 'resnet8'?",
    ),
    "data set": (
        "evaluate other.safetensors --arch resnet8 --data cifar",
        "E_UNKNOWN_NAME",
        "did you mean 'cifar100'?",
    ),
    "no ONNX file": ("measure text.onnx", "E_LOAD", "Is it an ONNX file?"),
    "ONNX folder": ("measure data", "E_ONNX_FILE", "data: a folder: name an ONNX file"),
    "ONNX path": ("measure none.onnx", "E_ONNX_FILE", "none.onnx: no such file: name an ONNX file"),
    "preset": ("measure text.onnx --preset fast", "E_UNKNOWN_NAME", "known are mlperf, quick, standard"),
    "cost of a text": ("cost text.onnx", "E_ONNX_FILE", "not a valid ONNX file"),
    "cost of a folder": ("cost data", "E_ONNX_FILE", "name an ONNX file"),
    "a file as RUNS": ("run distill --runs text.onnx", "E_FILE", "a file lies where a folder is needed"),
    "a foreign RUNS": ("run distill --runs /sys/afpkd", "E_FILE", "check the path, its owner and its permissions"),
    "RUNS in /proc": ("run distill --runs /proc/afpkd", "E_FILE", "/proc/afpkd: nothing can be made there: name"),
    "two at once": ("run distill --runs held", "E_RUNS_BUSY", "wait for it, end it, or use another RUNS"),
    "half of a foreign model": ("export --onnx text.onnx", "E_USAGE", "needs --spec SPEC.toml"),
    "an accuracy that is none": ("report --min-accuracy nan", "E_USAGE", "0 to 100, got nan"),
    "a recipe beside several": ("report --recipe default --recipes a b", "E_USAGE", "give one of them"),
    "a latency below zero": ("report --max-latency-ms -5", "E_USAGE", "more than 0, got -5"),
    "a threshold that is none": ("compare . . --threshold nan", "E_USAGE", "0 or more"),
    "samples in the record's place": ("measure m.onnx --out m.npz", "E_USAGE", "name the record m.json"),
    "a sweep over nothing": ("sweep default --set distill.mu", "E_USAGE", "KEY=VALUE,VALUE was expected"),
    "a code": ("explain E_DISC", "E_UNKNOWN_NAME", "did you mean 'E_DISK'?"),
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A newcomer's working directory."""
    for name, text in RECIPES.items():
        (tmp_path / f"{name}.toml").write_text(text)
    (tmp_path / "net.py").write_text("def studnt(num_classes): pass\n")
    for name in ("text.onnx", "text.pth"):
        (tmp_path / name).write_text("no network at all\n" * 100)
    save_file(
        build_model("resnet8", num_classes=10, in_channels=1, image_size=(28, 28)).state_dict(),
        tmp_path / "other.safetensors",
    )
    cut = tmp_path / "data" / "cifar-100-binary"
    cut.mkdir(parents=True)
    for name in ("train.bin", "test.bin", "fine_label_names.txt"):
        (cut / name).write_bytes(bytes(1000))
    (tmp_path / "devices.toml").write_text('[away]\nhost = "127.0.0.1:9"\n')
    monkeypatch.setenv("AFPKD_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("AFPKD_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def _typed(words: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["afpkd", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_mend_and_its_code(
    mistake: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words, code, mend = MISTAKES[mistake]
    if mistake == "devices.toml":
        (desk / "devices.toml").write_text('[away]\nhots = "x"\n')
    (desk / "held").mkdir()
    with locked(desk / "held"):
        assert _typed(words, monkeypatch) == 2
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == err.splitlines()[-1:], err
    assert errors[0].endswith(f" [{code}]")
    assert mend in errors[0]
    assert ": : " not in errors[0]
    assert "Traceback" not in err
    assert out == ""


def test_the_table_tries_a_good_share_of_the_codes() -> None:
    tried = {code for _, code, _ in MISTAKES.values()}
    assert tried <= set(ERRORS)
    assert len(tried) >= 24


def test_what_stages_side_by_side_stumble_over_is_said_once() -> None:
    told: list[str] = []
    first, again = (
        {"stage": stage, "job": stage, "error": "no data [E_DATA_MISSING]"} for stage in ("teacher", "undistilled")
    )
    assert graph._of_run("", first, told) == first
    assert graph._of_run("", again, told) == {"stage": "undistilled", "job": "undistilled", "ended": True}
    other = graph._of_run("other", {**again, "error": "no space"}, told)
    assert other == {"stage": "other undistilled", "job": "undistilled", "error": "other: no space"}
    assert graph._of_run("other", {"stage": "x", "job": "1", "text": "hm"}, told) == {
        "stage": "other x",
        "job": "1",
        "text": "hm",
    }
    assert told == ["no data [E_DATA_MISSING]", "other: no space"]


@pytest.mark.slow
def test_a_whole_run_without_its_data_says_so_once(desk: Path) -> None:
    """Teacher and undistilled student start side by side, and both miss it."""
    command = [sys.executable, "-m", "pipeline", "run", "distill", "--recipe", "tinyimagenet-cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if "E_DATA_MISSING" in line]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr


WEAK = """
extends = "default"
[data]
heldout = 400
[teacher]
arch = "resnet20"
weights = "other.safetensors"
min_top1 = 0.0
[distill]
epochs = 1
batch_size = 50
"""


@pytest.mark.slow
def test_an_error_that_other_stages_outlived_is_called_to_mind_at_the_end(desk: Path) -> None:
    (desk / "weak.toml").write_text(WEAK)
    command = [sys.executable, "-m", "pipeline", "run", "distill", "--recipe", "weak.toml", "--train-device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    (said,) = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert lines[said].endswith("or other weights [E_WEIGHTS_MISMATCH]")
    assert [line for line in lines[said:] if line.startswith("undistilled  test top-1")], done.stderr
    assert lines[-1] == "run          stopped by an error, said above; afpkd explain E_WEIGHTS_MISMATCH"


def test_several_errors_are_called_to_mind_by_their_kinds() -> None:
    told = graph._reminder(["a: x [E_DISK]", "b: y [E_DATA_MISSING]", "c: z [E_DISK]", "a fault of ours"])
    assert told == "stopped by 4 errors, said above; afpkd explain E_DISK; afpkd explain E_DATA_MISSING"


OLD = '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.10 || exit 1\n'


@pytest.mark.parametrize(
    ("python", "said"), [("./old", "./old is Python 3.8.10: "), ("./none", "./none is not there: ")]
)
def test_make_names_a_python_that_will_not_do(python: str, said: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "old").write_text(OLD)
    (tmp_path / "old").chmod(0o755)
    done = subprocess.run(
        ["make", "distill", f"PYTHON={python}"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    mend = "Python 3.11 or newer is needed; name one with PYTHON=python3.12"
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: {said}{mend} [E_PYTHON]"
    assert re.fullmatch(r"make: \*\*\* .*Error 2", done.stderr.splitlines()[1])
    assert not (tmp_path / ".venv").exists()


def test_a_setup_that_cannot_fetch_its_packages_says_what_to_see_to(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements.lock").write_text(f"nowhere==1 --hash=sha256:{'0' * 64}\n")
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    command = ["make", "distill", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=offline)
    assert done.returncode == 2
    *pips, told, makes = done.stderr.splitlines()
    assert "No matching distribution found for nowhere==1" in pips[-1]
    assert told.startswith("error: .venv is not complete, for the reason above: no network, ")
    assert told.endswith(" [E_SETUP]")
    assert makes.startswith("make: ***")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("deploy DEVICE=local", "E_LOCAL"),
        ("deploy DEVICE=orin1", "E_DEVICE_NAME"),
        ("deploy DEVICE=orin1 RECIPES=default", "E_USAGE"),
        ("deploy DEVICE=local-gpu CLUSTER=nowhere", "E_CLUSTER"),
        ("distill RECIPE=default RECIPES=default", "E_USAGE"),
    ],
)
def test_make_refuses_what_cannot_be_meant_before_it_trains(words: str, code: str, tmp_path: Path) -> None:
    afpkd = tmp_path / "afpkd"
    afpkd.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    afpkd.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AFPKD_QUIET": "1"}
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.afpkd-setup", f"AFPKD={afpkd}", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert (done.returncode, f"[{code}]\n" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "runs").exists()
