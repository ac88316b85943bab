"""CONTRIBUTING.md followed to the letter: in a copy of the tree each of the four additions is made, tested and used.

The files that are added lie beside this one. What else must be touched is listed here, and counted there.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
DOCS = "docs"
"""In place of a file: the one page, README.md or docs/*.md, in which the text stands."""


class Edit(NamedTuple):
    """Text that is put into a file, right after some that is there."""

    file: str
    after: str
    text: str


class Addition(NamedTuple):
    """A file of this folder, where it goes, and all else that is touched."""

    file: str
    place: str
    edits: tuple[Edit, ...]


HINT_OPTIONS = '''

@dataclass(frozen=True, kw_only=True)
class HintOptions(Options):
    """`hint`: the middle map through a regressor (Romero et al. 2015)."""

    imitates_maps: ClassVar[bool] = True
    loss_weights: ClassVar[tuple[str, ...]] = ("beta",)
    beta: float = 10.0
    """Weight of half the mean squared error."""
    warm_up: float = WARM_UP
    """Fraction of the schedule over which the weight rises from 0."""
'''
ADDITIONS = {
    "A distiller": Addition(
        "hint.py",
        "afpkd/distillers/hint.py",
        (
            Edit("afpkd/distillers/options.py", 'mu is 0, so there is no frequency loss")\n', HINT_OPTIONS),
            Edit("afpkd/distillers/options.py", '    "afpkd": AfpkdOptions,\n', '    "hint": HintOptions,\n'),
            Edit(DOCS, "`reviewkd`, `catkd`, ", "`hint`, "),
            Edit(DOCS, "\n    none.py            the control", "\n    hint.py            the middle map"),
        ),
    ),
    "A student": Addition(
        "small_cnn.py",
        "afpkd/models/small_cnn.py",
        (
            Edit(
                "afpkd/models/__init__.py",
                '    "shufflenetv2": _of("shufflenet_v2", "ShuffleNetV2"),\n',
                '    "small-cnn": _of("small_cnn", "SmallCnn"),\n',
            ),
            Edit("tests/afpkd/test_models.py", "UNPUBLISHED: tuple[str, ...] = (", '"small-cnn",'),
            Edit(DOCS, "`mobilenetv2`, `shufflenetv1`, ", "`small-cnn`, "),
            Edit(DOCS, "\n    vgg.py             VGG with BatchNorm", "\n    small_cnn.py       three convolutions"),
        ),
    ),
    "A data set": Addition(
        "usps.py",
        "afpkd/data/usps.py",
        (
            Edit("afpkd/data/__init__.py", "import TINY_IMAGENET\n", "from afpkd.data.usps import USPS\n"),
            Edit("afpkd/data/__init__.py", '    "tiny_imagenet": TINY_IMAGENET,\n', '    "usps": USPS,\n'),
            Edit(
                "NOTICE", "Shenggan/BCCD_Dataset\n", f"{'USPS (usps)':34}{'none stated':46}https://hastie.su.domains\n"
            ),
            Edit(DOCS, "`fashion_mnist_5k`,", " `usps`,"),
            Edit(DOCS, "\n    cifar100.py        the official binary layout", "\n    usps.py            digits"),
        ),
    ),
    "A runtime": Addition(
        "reference_runtime.py",
        "deploy/agent/reference_runtime.py",
        (
            Edit(
                "deploy/agent/runtimes.py",
                '    "onnxruntime": Kind("onnx_runtime", reads="onnxruntime"),\n',
                '    "onnx": Kind("reference_runtime", reads="onnxruntime"),\n',
            ),
            Edit(DOCS, "\n    onnx_runtime.py    ONNX Runtime on the CPU", "\n    reference_runtime.py  numpy"),
        ),
    ),
}


@pytest.fixture(scope="module", name="tree")
def _tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree with the four additions."""
    tree = tmp_path_factory.mktemp("tours") / "tree"
    left = shutil.ignore_patterns(".git", ".venv", "runs", "dist", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=left)
    for addition in ADDITIONS.values():
        shutil.copy(HERE / addition.file, tree / addition.place)
        for edit in addition.edits:
            _make(tree, edit)
    shutil.copy(HERE / "their_tests.py", tree / "tests" / "test_added.py")
    _run(tree, "-m", "pipeline.reference")
    return tree


def _make(tree: Path, edit: Edit) -> None:
    files = [tree / "README.md", *(tree / "docs").glob("*.md")] if edit.file == DOCS else [tree / edit.file]
    (file,) = [file for file in files if edit.after in file.read_text(encoding="utf-8")]
    text = file.read_text(encoding="utf-8")
    assert text.count(edit.after) == 1, f"{file.name}: {edit.after}"
    file.write_text(text.replace(edit.after, edit.after + edit.text), encoding="utf-8")


def _run(tree: Path, *arguments: str, **variables: str) -> str:
    """Python, on the copy."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_contributing_counts_the_lines_that_each_addition_takes() -> None:
    told = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    for name, addition in ADDITIONS.items():
        num_lines = len((HERE / addition.file).read_text(encoding="utf-8").splitlines())
        assert num_lines <= 60
        more = sum(len(list(filter(str.strip, edit.text.splitlines()))) for edit in addition.edits if edit.file != DOCS)
        head = f"**{name}** ({num_lines} lines, and {more} elsewhere): `{Path(addition.place).parent}/"
        assert head in told, head
        paragraph = told.split(f"**{name}**")[1].split(" - **")[0]
        touched = {edit.file for edit in addition.edits} - {DOCS}
        assert [file for file in touched if Path(file).name not in paragraph] == [], f"{name}: also touched"


@pytest.mark.slow
def test_ruff_mypy_and_the_layers_have_nothing_against_the_additions(tree: Path) -> None:
    """`make check` on the copy; mypy on what was touched, with what it remembers of the rest where it ran before."""
    remembered = ROOT / ".mypy_cache"
    if remembered.is_dir():
        shutil.copytree(remembered, tree / ".mypy_cache")
    touched = {edit.file for addition in ADDITIONS.values() for edit in addition.edits if edit.file.endswith(".py")}
    touched |= {addition.place for addition in ADDITIONS.values()} | {"tests/test_added.py"}
    _run(tree, "-m", "ruff", "check", "--no-cache", ".")
    _run(tree, "-m", "ruff", "format", "--no-cache", "--check", ".")
    _run(tree, "-m", "mypy", *sorted(touched))
    _run(tree, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")


@pytest.mark.slow
def test_nothing_else_fails_with_the_additions_in_place(tree: Path) -> None:
    """Documents, the additions' own tests, and those that run over all methods, models, data sets and runtimes."""
    chosen = [
        *("test_docs.py", "test_rules.py", "test_release.py", "test_added.py"),
        *("deploy/test_pack.py", "deploy/test_probe.py"),
        *("afpkd/test_rivals.py", "afpkd/test_train.py::test_golden_first_steps"),
        "afpkd/test_detection.py::test_a_student_is_distilled_by_every_method_that_needs_no_logits[hint]",
        "afpkd/test_models.py::test_the_tables_speak_of_the_whole_zoo",
        "afpkd/test_models.py::test_outputs_fit_together_and_each_level_can_be_refined[small-cnn]",
        "pipeline/test_doctor.py::test_data_sets_are_looked_for",
    ]
    paths = [f"tests/{path}" for path in chosen]
    shown = _run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *paths)
    assert re.search(r"^\d\d+ passed", shown, re.MULTILINE), shown[-500:]


RECIPE = """
extends = "default"
[data]
name = "usps"
mean = [0.5]
std = [0.25]
heldout = 6891
crop_padding = 0
flip = false
[teacher]
arch = "resnet8"
epochs = 2
min_top1 = 0.0
[distill]
student = "small-cnn"
method = "hint"
epochs = 2
beta = 5.0
[export]
precisions = ["fp32"]
"""
PROFILE = """
import sys
from pathlib import Path
from deploy import devices, presets
from deploy.measure import profile_bundle
board = devices.Device(name="board", transport="local", runtime="onnx", python=(sys.executable,))
devices.devices = lambda: {"board": board}
warm_up = presets.WarmUp(min_seconds=0, min_count=3, window=1, tolerance=1e9, max_seconds=10)
presets._PRESETS["brief"] = presets.Preset(name="brief", min_seconds=0, min_count=100, warm_up=warm_up)
run = Path(sys.argv[1])
profile_bundle(run / "student" / "bundle", device="board", precision="fp32", preset="brief", threads=0,
               out=run / "profile.json", recipe="mine", config_digest="0")
"""


@pytest.mark.slow
def test_the_additions_work_together(tree: Path, tmp_path: Path) -> None:
    """The new student learns the new data set by the new method, and its file is measured on the new runtime."""
    write_digits(tmp_path / "data" / "usps")
    (tmp_path / "mine.toml").write_text(RECIPE)
    data, where = {"AFPKD_DATA": str(tmp_path / "data")}, ("--recipe", str(tmp_path / "mine.toml"))
    for verb in (("train-teacher",), ("train-student",), ("export", "--role", "student")):
        _run(tree, "-m", "pipeline", *verb, *where, "--runs", str(tmp_path), **data)
    _run(tree, "-c", PROFILE, str(tmp_path / "mine"), **data)
    trained, profiled = (
        json.loads((tmp_path / "mine" / name).read_text()) for name in ("student/record.json", "profile.json")
    )
    assert (trained["arch"], trained["method"]) == ("small-cnn", "hint")
    assert trained["metrics"]["test_top1_last"] > 50  # of ten classes
    assert profiled["runtime"]["name"] == "onnx"
    assert profiled["top1"] == pytest.approx(trained["metrics"]["test_top1_selected"], abs=0.2)
    told = " ".join(profiled["reasons"])  # a busy machine says more
    assert "golden" not in told
    assert "wrong runtime" not in told
    assert profiled["n"] >= 100


def write_digits(folder: Path) -> None:
    """Files of the published form: each class a pattern of its own, with noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    patterns = np.kron(rng.choice([-1.0, 1.0], (10, 4, 4)), np.ones((4, 4))).reshape(10, 256)
    for name, num in (("train", 7291), ("test", 500)):
        labels = rng.integers(0, 10, num)
        values = (0.5 * patterns[labels] + 0.5 * rng.uniform(-1, 1, (num, 256))).round(3)
        rows = [f"{label} {' '.join(map(str, row))}" for label, row in zip(labels, values.tolist(), strict=True)]
        (folder / f"zip.{name}.gz").write_bytes(gzip.compress("\n".join(rows).encode(), 1))
